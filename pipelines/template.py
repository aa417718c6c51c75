"""A rigged animal in, a template out, with a picture to check it by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tables import InputError
from trainers.app import command

if TYPE_CHECKING:
    from models.template import Template


@command("template")
def main(cfg: Any) -> None:
    from omegaconf import OmegaConf

    if not OmegaConf.is_dict(cfg.parts):
        raise InputError("parts", cfg.parts, "give a joint for a part, say parts.neck=Neck1")
    parts = {str(part): str(joint) for part, joint in cfg.parts.items() if joint is not None}
    rig, keypoints, out = (_path(cfg, key) for key in ("rig", "keypoints", "out"))
    picture = str(cfg.picture or f"{out}.png")
    made = build(rig, keypoints, out, parts, picture)
    from rich.console import Console

    sizes = f"{len(made.vertices)} vertices, {len(made.faces)} faces, {len(made.parts)} parts"
    Console(soft_wrap=True).print(f"{out}: {sizes} ({', '.join(made.parts)}). Check it by {picture}")


def build(rig: str, keypoints: str, out: str, parts: Mapping[str, str], picture: str) -> Template:
    """Write the template of a rig and its picture; each appears whole or not at all.

    Raises:
        InputError: a file is missing or of another kind, or the rig and keypoints do not give a template.
    """
    for argument, path in (("out", out), ("picture", picture)):
        if os.path.isdir(path):
            raise InputError(argument, path, "is a folder; give a file name")
    if os.path.realpath(out) in (os.path.realpath(rig), os.path.realpath(keypoints), os.path.realpath(picture)):
        raise InputError("out", out, "would overwrite an input or the picture; give another name")
    from models.template import Template
    from models.template_picture import save_template_picture

    made = Template.from_rig(rig, keypoints, parts)
    made.save(out)
    save_template_picture(made, picture)
    return made


def _path(cfg: Any, key: str) -> str:
    """A required file name.

    Raises:
        InputError: it was not given.
    """
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise InputError(key, "", f"is required; say {key}=<file>")
    return str(cfg[key])


if __name__ == "__main__":
    main()
