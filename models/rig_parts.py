"""Which joints of a rig make which part of the animal: from the hierarchy, the skin and the keypoints, not names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# Order of the parts; a rig may lack neck, head or tail.
PARTS = ("body", "neck", "head", "leg_LF", "leg_RF", "leg_LB", "leg_RB", "tail")
LEGS = {"leg_LF": "L_F", "leg_RF": "R_F", "leg_LB": "L_B", "leg_RB": "R_B"}
_HEAD = ("L_eye", "R_eye", "L_ear", "R_ear", "Nose")


@dataclass(frozen=True, eq=False)
class Skin:
    """What the grouping looks at; V vertices, J joints, in the template frame.

    Attributes:
        vertices: [V, 3].
        edges: [E, 2] vertex indices.
        weights: [V, J].
        parents: J entries, -1 for a root, in any order.
        positions: [J, 3] joints in the bind pose.
        keypoints: vertex index by keypoint name.
    """

    vertices: np.ndarray
    edges: np.ndarray
    weights: np.ndarray
    parents: tuple[int, ...]
    positions: np.ndarray
    keypoints: Mapping[str, int]


class PartsNotFound(ValueError):
    """The message says which part and why."""


def group_joints(skin: Skin, fixed: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Joints of each part, and the joint whose position is its pivot.

    A part is made of seeds, joints that it owns together with all below them that no other seed owns:
    - leg: from the joint that moves its paw, and from the one that moves its elbow, up as long as the chain moves no
      other limb's keypoints. Two seeds where the foot is an inverse-kinematics target outside the leg's chain;
      where the elbow tells nothing, the branch whose skin borders on such a foot joins it.
    - head: the lowest joint above those that move eyes, ears and nose, if it moves any of them itself; else (a
      neck joint that carries skull and ears apart) the branches below it.
    - neck: the chain above the head, up to where it moves legs, the tail or the withers.
    - tail: the branch at the Tail keypoint whose skin lies behind it.
    - body: all else.

    Args:
        fixed: root joint of parts that the user has named.

    Raises:
        PartsNotFound: no joint moves a leg alone.
    """
    tree = _Tree(skin)
    seeds: dict[int, str] = {}
    for part, joint in fixed.items():
        seeds[joint] = part
    for part, prefix in LEGS.items():
        if part not in fixed:
            own = {f"{prefix}_elbow", f"{prefix}_paw"}
            tops = {tree.climb(tree.holder(name), own) for name in sorted(own)} - {-1}
            if not tops:
                raise PartsNotFound(f"no joint moves {prefix}_paw without other limbs, so there is no {part}")
            seeds.update(dict.fromkeys(sorted(tops), part))
    if "head" not in fixed:
        for joint in tree.head():
            seeds.setdefault(joint, "head")
    head = next((joint for joint, part in seeds.items() if part == "head"), -1)
    if "neck" not in fixed and head >= 0:
        neck = tree.neck(head)
        if neck >= 0:
            seeds.setdefault(neck, "neck")
    _join_detached(tree, seeds)
    if "tail" not in fixed:
        tail = tree.tail(seeds)
        if tail >= 0:
            seeds[tail] = "tail"
    owner = tree.spread(seeds)
    joints = {p: np.flatnonzero([o == p for o in owner]) for p in PARTS if p in owner}
    pivots = {p: fixed[p] if p in fixed else tree.root_of(p, members) for p, members in joints.items()}
    return joints, pivots


class _Tree:
    """The joints as a tree, and the share of each keypoint that each subtree moves."""

    def __init__(self, skin: Skin) -> None:
        self.skin, n = skin, len(skin.parents)
        self.mass = skin.weights.sum(0)
        self.ancestors = [self._up(j) for j in range(n)]  # each from the joint itself to its root
        below = np.zeros((n, n))
        for j, chain in enumerate(self.ancestors):
            below[chain, j] = 1
        self.below = below  # below[a, j]: j is a or under it
        self.share = {name: below @ skin.weights[v] for name, v in skin.keypoints.items()}

    def _up(self, joint: int) -> list[int]:
        chain = []
        while joint >= 0:
            chain.append(joint)
            joint = self.skin.parents[joint]
        return chain

    def moved(self, joint: int) -> set[str]:
        """Keypoints that follow mostly the joint and what hangs on it."""
        return {name for name, share in self.share.items() if share[joint] >= 0.5}

    def holder(self, keypoint: str) -> int:
        """The deepest joint whose subtree moves the keypoint, or -1."""
        share = self.share[keypoint]
        found = [j for j in range(len(share)) if share[j] >= 0.5]
        return max(found, key=lambda j: len(self.ancestors[j]), default=-1)

    def climb(self, joint: int, allowed: set[str]) -> int:
        """The highest ancestor that moves nothing but the allowed keypoints, or -1."""
        best = -1
        for above in self.ancestors[joint] if joint >= 0 else []:
            if self.moved(above) - allowed:
                break
            best = above
        return best

    def head(self) -> list[int]:
        """Seeds of the head: one joint, or the branches of a neck joint that carries skull and ears apart."""
        allowed = {*_HEAD, "Throat", "Withers"}
        holders = [h for h in map(self.holder, _HEAD) if h >= 0 and not self.moved(h) - allowed]
        if not holders:
            return []
        chains = [self.ancestors[h] for h in holders]
        shared = [j for j in chains[0] if all(j in c for c in chains) and not self.moved(j) - allowed]
        if not shared:
            return [holders[-1]]
        if shared[0] in holders:
            return shared[:1]
        return sorted({c[c.index(shared[0]) - 1] for c in chains})

    def neck(self, head: int) -> int:
        allowed = {*_HEAD, "Throat", "Withers"}
        chain = []
        for joint in self.ancestors[head][1:]:
            if self.moved(joint) - allowed:
                break
            chain.append(joint)
        free = [j for j in chain if "Withers" not in self.moved(j)]
        return free[-1] if free else (chain[0] if chain else -1)

    def tail(self, seeds: Mapping[int, str]) -> int:
        """The heaviest branch of the trunk whose skin lies behind the Tail keypoint, near the middle; or -1."""
        skin = self.skin
        base = skin.vertices[skin.keypoints["Tail"]]
        size = np.ptp(skin.vertices, axis=0).max()
        best, heaviest = -1, 1e-3 * len(skin.vertices)
        for joint in self.branches(seeds, {"Tail"}):
            weights = skin.weights @ self.below[joint]
            mass = weights.sum()
            if mass <= heaviest:
                continue
            centre = weights @ skin.vertices / mass
            near = np.linalg.norm(skin.positions[joint] - base) < 0.35 * size
            if near and centre[2] < base[2] + 0.05 * size and abs(centre[0]) < 0.1 * size:
                best, heaviest = joint, mass
        return best

    def branches(self, seeds: Mapping[int, str], allowed: set[str]) -> list[int]:
        """Tops of the subtrees without a seed that move no keypoint but the allowed ones, and hang on the body."""
        owner = self.spread(seeds)
        seeded = self.below @ np.array([j in seeds for j in range(len(owner))])
        free = [owner[j] == "body" and not seeded[j] and not self.moved(j) - allowed for j in range(len(owner))]
        return [
            j for j in range(len(owner)) if free[j] and not (self.skin.parents[j] >= 0 and free[self.skin.parents[j]])
        ]

    def spread(self, seeds: Mapping[int, str]) -> list[str]:
        """The part of each joint: that of the nearest seed above it."""
        return [next((seeds[a] for a in chain if a in seeds), "body") for chain in self.ancestors]

    def root_of(self, part: str, members: np.ndarray) -> int:
        """The topmost joint that moves a noticeable share of the part: control bones on the ground move little."""
        least = (0.05 if part == "body" else 0.02) * self.mass[members].sum()
        busy = [int(j) for j in members if self.mass[j] >= least] or [int(members[0])]
        tops = [j for j in busy if not any(a in busy for a in self.ancestors[j][1:])]
        if part in LEGS:  # not the detached foot
            return max(tops, key=lambda j: self.skin.positions[j][1])
        return max(tops, key=lambda j: (self.below[j] @ self.mass, -j))


def _join_detached(tree: _Tree, seeds: dict[int, str]) -> None:
    """Give keypoint-less branches that border on a leg's lone foot to that leg, and lone roots to what they border."""
    skin = tree.skin
    for joint in tree.branches(seeds, set()):
        owner = tree.spread(seeds)
        lone = skin.parents[joint] < 0
        wanted = list(PARTS) if lone else [p for p in LEGS if not _hangs_on_body(tree, seeds, p)]
        own = skin.weights @ tree.below[joint]
        rest = [j for j in range(len(owner)) if not tree.below[joint, j]]
        touch = {p: _contact(skin, own, [j for j in rest if owner[j] == p]) for p in wanted}
        best = max(touch, key=lambda p: touch[p], default=None)
        if best not in (None, "body") and touch[best] > 0.05 * own.sum():
            seeds[joint] = best


def _hangs_on_body(tree: _Tree, seeds: Mapping[int, str], part: str) -> bool:
    """Whether some seed of the part hangs on a joint with skin of its own, and not just on a control bone."""
    least = 0.01 * len(tree.skin.vertices)
    return any(p == part and any(tree.mass[a] > least for a in tree.ancestors[j][1:]) for j, p in seeds.items())


def _contact(skin: Skin, own: np.ndarray, joints: list[int]) -> float:
    """How much two groups share vertices and edges, as weight."""
    other = skin.weights[:, joints].sum(1)
    a, b = skin.edges.T
    return float((own * other).sum() + (own[a] * other[b] + own[b] * other[a]).sum() / 2)
