"""All networks on a device: as they are on a CPU, folded and replayed from a CUDA graph on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.device_errors import out_of_memory
from models.frozen import frozen
from models.predict import predict_all


class Predictor:
    """`predict_all` from arrays to arrays, for threads to call.

    A GPU sees batches of one size, a smaller one filled up: what it says of a crop does not depend on the others. Crops
    go up from pinned memory while another thread's are looked at. Where memory runs out, batches are halved from then
    on.

    Args:
        nets: of `pose`, `aux` and `acsm` those there are.
        image_size: of `pose`, and of `aux` where `aux_size` does not say another.
        views: False leaves out the joints of `pose`: it is there for its heatmaps alone.
    """

    def __init__(
        self, nets: Mapping[str, Any], image_size: int, device: str, views: bool = True, aux_size: int | None = None
    ) -> None:
        self.device, self.views = torch.device(device), views
        self.image_size, self.aux_size = image_size, aux_size
        on_gpu = self.device.type == "cuda"
        self.nets = {n: frozen(net.to(device)) if on_gpu else net for n, net in nets.items()}
        self.batch = 256 if on_gpu else 64
        self.lock = threading.Lock()
        self.graph: torch.cuda.CUDAGraph | None = None
        self.crops: torch.Tensor | None = None
        self.found: dict[str, torch.Tensor] = {}

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """What all say of stored crops uint8 [N,C,C,3], N at least 1, in the network's frame."""
        parts, start = [], 0
        while start < len(crops):
            tried = self.batch
            try:
                parts.append(self._predict(crops[start : start + tried]))
                start += tried
                continue
            except Exception as error:
                if tried == 1 or not out_of_memory(error):
                    raise
            self._halve(tried)  # out here nothing holds on to what the attempt had in memory
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _halve(self, tried: int) -> None:
        """After a batch of this size found no memory: another thread may have halved it since."""
        with self.lock:
            if self.batch == tried:
                self.batch, self.graph, self.crops, self.found = tried // 2, None, None, {}
                torch.cuda.empty_cache()

    def _predict(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        if self.device.type != "cuda":
            found = predict_all(self.nets, torch.from_numpy(crops), self.image_size, self.views, self.aux_size)
            return {name: values.numpy() for name, values in found.items()}
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            uploaded = torch.from_numpy(crops).pin_memory().to(self.device, non_blocking=True)
        stream.synchronize()
        with self.lock:
            size = self.batch  # less than there are crops where another thread has halved it
            parts = [self._replay(uploaded[start : start + size]) for start in range(0, len(crops), size)]
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _replay(self, uploaded: torch.Tensor) -> dict[str, np.ndarray]:
        if self.graph is None:
            self._record(uploaded.shape[1:])
        self.crops[: len(uploaded)].copy_(uploaded)  # type: ignore[index]
        self.graph.replay()  # type: ignore[union-attr]
        return {name: values[: len(uploaded)].cpu().numpy() for name, values in self.found.items()}

    def _record(self, shape: tuple[int, ...]) -> None:
        """Capture a batch; nothing of it is kept."""
        self.crops = crops = torch.zeros((self.batch, *shape), dtype=torch.uint8, device=self.device)
        side = torch.cuda.Stream(self.device)
        with torch.cuda.stream(side):
            predict_all(self.nets, crops, self.image_size, self.views, self.aux_size)  # libraries choose their kernels
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.found = predict_all(self.nets, crops, self.image_size, self.views, self.aux_size)
        self.graph = graph
