"""Keypoint skeletons: names, left/right permutation and the lines to draw."""

from __future__ import annotations

from collections.abc import Sequence
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

# What other data sets call these joints, in the order of `QUADRUPED`, lower case; "" where they have none.
#
# "Elbow" is the upper joint that shows below the trunk: the elbow of a front leg, the stifle of a back leg. So say the
# places in Animal Pose, whose knees lie below and are dropped. AP-10K calls these two `shoulder` and `hip` ("we use
# 'hip' to denote the knees for unguligrade and digitigrade animals and 'knee' for their ankles": its README, key
# question 4); its elbows and knees are Animal Pose's knees, and its neck, in the middle of the neck, is no throat.
_SAME_NAMES = {
    "Animal Pose": (
        "left_eye", "right_eye", "left_ear", "right_ear", "nose", "throat", "tailbase", "withers",
        "left_front_elbow", "right_front_elbow", "left_back_elbow", "right_back_elbow",
        "left_front_paw", "right_front_paw", "left_back_paw", "right_back_paw",
    ),
    "Animal Pose, Pascal part": (
        "l_eye", "r_eye", "l_earbase", "r_earbase", "nose", "throat", "tailbase", "withers",
        "l_f_elbow", "r_f_elbow", "l_b_elbow", "r_b_elbow", "l_f_paw", "r_f_paw", "l_b_paw", "r_b_paw",
    ),
    "AP-10K": (
        "left_eye", "right_eye", "", "", "nose", "", "root_of_tail", "",
        "left_shoulder", "right_shoulder", "left_hip", "right_hip",
        "left_front_paw", "right_front_paw", "left_back_paw", "right_back_paw",
    ),
    "AP-10K, MMPose": (  # as MMPose and networks that were trained with it say
        "l_eye", "r_eye", "", "", "nose", "", "root of tail", "",
        "l_shoulder", "r_shoulder", "l_hip", "r_hip", "l_f_paw", "r_f_paw", "l_b_paw", "r_b_paw",
    ),
}  # fmt: skip


def joint_order(theirs: Sequence[str]) -> tuple[int, ...]:
    """Where each of the 16 joints stands in another list of joint names (any case); -1 where it has none.

    Raises:
        ValueError: the list has neither our names nor those of a data set we know; the message says what it lacks.
    """
    at = {str(name).lower(): i for i, name in enumerate(theirs)}
    for names in (tuple(n.lower() for n in QUADRUPED.names), *_SAME_NAMES.values()):
        if all(n in at for n in names if n):
            return tuple(at.get(n, -1) for n in names)
    missing = [n for n in QUADRUPED.names if n.lower() not in at]
    raise ValueError(f"lacks the joints {', '.join(missing)} and is no list of {', '.join(_SAME_NAMES)}")
