"""Keypoint skeletons: names, left/right permutation and the lines to draw."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Skeleton:
    """K named keypoints; `flip[k]` is the joint that k becomes in a mirror image."""

    names: tuple[str, ...]
    flip: tuple[int, ...]
    edges: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.names)


# The 16 keypoints shared by all categories of the reference method, in its order
# (animals3d acsm/constants.py:3-33).
QUADRUPED = Skeleton(
    names=(
        "L_eye", "R_eye", "L_ear", "R_ear", "Nose", "Throat", "Tail", "Withers",
        "L_F_elbow", "R_F_elbow", "L_B_elbow", "R_B_elbow",
        "L_F_paw", "R_F_paw", "L_B_paw", "R_B_paw",
    ),
    flip=(1, 0, 3, 2, 4, 5, 6, 7, 9, 8, 11, 10, 13, 12, 15, 14),
    edges=(
        (0, 1), (0, 4), (1, 4), (0, 2), (1, 3), (4, 5), (5, 7), (7, 6),
        (5, 8), (5, 9), (6, 10), (6, 11), (8, 12), (9, 13), (10, 14), (11, 15),
    ),
)  # fmt: skip
