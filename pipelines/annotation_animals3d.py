"""The annotation JSON of animals3d: a list of animals with joints, masks and SfM cameras.

Its reader there is acsm/acsm/datasets/base.py.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np

from models.animals3d import AXES
from pipelines.annotations import Animal, photos_of, read_json
from tables import QUADRUPED, InputError

_WHAT = "animals3d's annotation JSON"


def read_animals3d(
    path: str, folder: str, category: str | None = None, ids: Container[str] | None = None
) -> list[dict[str, Any]]:
    """Photos of an annotation file of animals3d (see `photos_of`); it names no category, so all are taken.

    `ids` are what its file lists hold. A joint counts as seen where its third number is above 0.

    Raises:
        InputError: the file or a photo is missing, or an element lacks a key or has another number of joints.
    """
    rows = read_json(path, _WHAT)
    try:
        return photos_of(_animals(path, rows), path, folder, ids)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("source.path", path, f"not {_WHAT} ({type(error).__name__}: {error})") from error


def _animals(path: str, rows: list[Mapping[str, Any]]) -> Iterator[Animal]:
    for row in rows:
        joints = row["joints"]
        if len(joints) != len(QUADRUPED):
            raise InputError("source.path", path, f"img_id {row['img_id']} has {len(joints)} joints, not 16")
        flat = [n for x, y, v in joints for n in ((float(x), float(y), 2.0) if v > 0 else (0.0, 0.0, 0.0))]
        yield Animal(str(row["img_id"]), row["img_path"], row["img_bbox"], flat, _camera(row), _runs(row.get("seg")))


def _camera(row: Mapping[str, Any]) -> list[float] | None:
    """s, tx, ty in photo pixels and the quaternion from our template axes; None where the file has none or doubts it.

    The file's rotation R turns the reference's template; ours is that one turned by `AXES`, so R AXES^-1.
    """
    if "cam_rot" not in row or not row.get("valid_cam", 1):
        return None
    import torch  # no command loads it before it must

    from models.camera import matrix_to_quat

    matrix = np.asarray(row["cam_rot"], np.float64) @ AXES.T
    quaternion = matrix_to_quat(torch.from_numpy(matrix)).tolist()
    return [float(n) for n in (np.ravel(row["cam_scale"])[0], *np.ravel(row["cam_trans"]), *quaternion)]


def _runs(seg: Any) -> dict[str, Any] | None:
    """A mask of rows of 0 and 1 as COCO's run lengths: column by column, zeros first."""
    if not seg:
        return None
    mask = np.asarray(seg, bool)
    flat = mask.T.ravel()
    cuts = np.flatnonzero(np.diff(flat)) + 1
    edges = [0, *([0] if flat[0] else []), *cuts.tolist(), flat.size]
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}
