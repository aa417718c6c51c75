"""The six tables: one Arrow schema each, declared here and nowhere else."""

from __future__ import annotations

import pyarrow as pa


def _floats(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


def schema(table: str, keypoints: int = 16, transforms: int = 7) -> pa.Schema:
    """Arrow schema of a table, for K keypoints and T transforms (transform 0 is the identity).

    Pixels are of the upright photo, x to the right and y down, pixel edges at whole numbers.

    Raises:
        KeyError: no such table.
    """
    k3 = _floats(3 * keypoints)
    schemas = {
        # One row per attempted URL. A failure is a row; being a duplicate never changes `status`.
        "photos": [
            ("photo_id", pa.string()), ("url", pa.string()), ("status", pa.string()), ("error", pa.string()),
            ("http_status", pa.int32()), ("final_url", pa.string()), ("attempts", pa.int32()), ("ms", pa.float32()),
            ("bytes", pa.binary()), ("sha256", pa.string()), ("dhash", pa.uint64()), ("duplicate_of", pa.string()),
            ("width", pa.int32()), ("height", pa.int32()),
            ("license", pa.string()), ("author", pa.string()), ("page_url", pa.string()),
        ],
        # One row per detected or labelled animal. `crop` is a square JPEG of the photo's `window`. `dhash` is of the
        # whole photo; `duplicate_of` names the photo that stays where this one is a near duplicate of it.
        "instances": [
            ("instance_id", pa.string()), ("photo_id", pa.string()), ("category", pa.string()),
            ("bbox", _floats(4)), ("score", pa.float32()), ("detector", pa.string()),
            ("window", _floats(3)), ("crop", pa.binary()), ("dhash", pa.uint64()), ("duplicate_of", pa.string()),
        ],
        # Keypoints [K,3]: x, y in photo pixels, v in {0, 1, 2}. Camera [7]: s, tx, ty in photo pixels and the
        # wxyz quaternion that turns template axes to image axes (weak perspective: s R X + t).
        # Mask: PNG of the whole photo, non-zero is animal.
        "labels": [
            ("instance_id", pa.string()), ("keypoints", k3), ("camera", _floats(7)), ("mask", pa.binary()),
            ("split", pa.string()),
        ],
        # Keypoints [K,3]: x, y in photo pixels, confidence in [0, 1]. `heatmap_3d` [K] in [0, 1]: the 2D net's heatmap
        # of each joint, read where the 3D net has it.
        "pseudo_labels": [
            ("instance_id", pa.string()), ("round", pa.int32()), ("keypoints", k3), ("keypoints_aux", k3),
            ("keypoints_mt", _floats(3 * transforms * keypoints)), ("keypoints_3d", _floats(2 * keypoints)),
            ("heatmap_3d", _floats(keypoints)),
            ("model_pose", pa.string()), ("model_aux", pa.string()), ("model_3d", pa.string()),
        ],
        "selections": [
            ("instance_id", pa.string()), ("round", pa.int32()), ("criterion", pa.string()), ("score", pa.float64()),
            ("rank", pa.int64()), ("selected", pa.bool_()), ("reason", pa.string()),
        ],
        # `pck` [thresholds]: percent at .01, .02, ... .15 of the box's longer side. `joints` [K]: auc_06_10 of each.
        "metrics": [
            ("model", pa.string()), ("model_id", pa.string()), ("round", pa.int32()), ("split", pa.string()),
            ("auc_06_10", pa.float64()), ("pck", pa.list_(pa.float64())), ("camera_error_deg", pa.float64()),
            ("miou", pa.float64()), ("joints", pa.list_(pa.float64())), ("transfer_pck_10", pa.float64()),
            ("instances", pa.int32()),
        ],
    }  # fmt: skip
    return pa.schema(schemas[table])


TABLES = ("photos", "instances", "labels", "pseudo_labels", "selections", "metrics")

# What names a row. Readers keep one row per key.
KEYS = {
    "photos": ["photo_id"],
    "instances": ["instance_id"],
    "labels": ["instance_id"],
    "pseudo_labels": ["instance_id", "round"],
    "selections": ["instance_id", "criterion", "round"],
    "metrics": ["model_id", "split"],
}
