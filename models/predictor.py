"""All networks on a device: as they are on a CPU, folded and replayed from a CUDA graph on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from models.frozen import frozen
from models.predict import predict_all


class Predictor:
    """`predict_all` from arrays to arrays, for threads to call.

    A GPU sees batches of one size, a smaller one filled up: what it says of a crop does not depend on the others. Crops
    go up from pinned memory while another thread's are looked at. Where memory runs out, batches are halved from then
    on.

    Args:
        nets: of `pose`, `aux` and `acsm` those there are.
        image_size: of the 2D nets.
        views: False leaves out the joints of `pose`: it is there for its heatmaps alone.
    """

    def __init__(self, nets: Mapping[str, Any], image_size: int, device: str, views: bool = True) -> None:
        self.device, self.image_size, self.views = torch.device(device), image_size, views
        on_gpu = self.device.type == "cuda"
        self.nets = {n: frozen(net.to(device)) if on_gpu else net for n, net in nets.items()}
        self.batch = 256 if on_gpu else 64
        self.lock = threading.Lock()
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """What all say of stored crops uint8 [N,C,C,3], N at least 1, in the network's frame."""
        parts, start = [], 0
        while start < len(crops):
            try:
                parts.append(self._predict(crops[start : start + self.batch]))
                start += len(next(iter(parts[-1].values())))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch, self.graph = self.batch // 2, None
                torch.cuda.empty_cache()
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _predict(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        if self.device.type != "cuda":
            found = predict_all(self.nets, torch.from_numpy(crops), self.image_size, self.views)
            return {name: values.numpy() for name, values in found.items()}
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            uploaded = torch.from_numpy(crops).pin_memory().to(self.device, non_blocking=True)
        stream.synchronize()
        with self.lock:
            if self.graph is None:
                self._record(crops.shape[1:])
            self.crops[: len(crops)].copy_(uploaded)
            self.graph.replay()  # type: ignore[union-attr]
            return {name: values[: len(crops)].cpu().numpy() for name, values in self.found.items()}

    def _record(self, shape: tuple[int, ...]) -> None:
        """Capture a batch; nothing of it is kept."""
        self.crops = torch.zeros((self.batch, *shape), dtype=torch.uint8, device=self.device)
        side = torch.cuda.Stream(self.device)
        with torch.cuda.stream(side):
            predict_all(self.nets, self.crops, self.image_size, self.views)  # libraries choose their kernels
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.found = predict_all(self.nets, self.crops, self.image_size, self.views)
        self.graph = graph
