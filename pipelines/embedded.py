"""The sandbox as a supplier: template, labelled images, metadata rows and the origin that serves their photos."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tables import Lake


@dataclass(frozen=True)
class Embedded:
    """What the loop needs of the sandbox.

    Attributes:
        template: file made from the sandbox's rig, as a stranger's would be.
        labels: split -> COCO keypoint file.
        photos: folder of the labelled photos.
        source, fetch: the config keys that point the crawler at the origin.
        truth: file that only diagnostics may open.
    """

    template: str
    labels: Mapping[str, str]
    photos: str
    source: Mapping[str, Any]
    fetch: Mapping[str, Any]
    truth: str

    def ingest(self, lake: str, category: str, crop_px: int, resources: Any) -> None:
        """Read the three labelled sets into the lake."""
        from pipelines.ingest import ingest

        for split, path in self.labels.items():
            source = {"format": "coco", "path": path, "images": self.photos}
            ingest(lake, category, split, source, crop_px, resources)


@contextmanager
def open_sandbox(settings: Mapping[str, Any], lake: Lake) -> Iterator[Embedded]:
    """Build the sandbox if this machine has it not, and serve its web photos on 127.0.0.1 for the while.

    It lies in a local lake; where the lake is in an object store, on this machine's disk (`Files.local`).
    """
    from models.template import Template
    from sandbox.origin import Origin
    from sandbox.world import build_world

    world = build_world(lake.files.local(f"sandbox/{settings['name']}"), settings)
    template = os.path.join(world.directory, f"animal-{world.fingerprint}.template")
    if not os.path.exists(template):
        Template.from_rig(world.glb, keypoints=world.keypoints).save(template)
    with Origin(os.path.dirname(world.origin)) as origin:
        yield Embedded(
            template=template,
            labels={s: getattr(world, s) for s in ("train", "val", "test")},
            photos=world.labelled_photos,
            source={"path": world.rows, "format": "yfcc_v2", "mirror": origin.url},
            fetch={"allow_hosts": ["127.0.0.1"]},
            truth=world.truth,
        )
