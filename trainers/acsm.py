"""Train the 3D network on labels, and on a round's selected pseudo-labels where one is named."""

from __future__ import annotations

import os
from typing import Any

from tables import InputError, Lake
from trainers.app import command


@command("acsm")
def main(cfg: Any) -> None:
    from models.template import Template
    from trainers.command import train_command

    if not cfg.template:
        raise InputError("template", "null", "name the file that `wildshape template` made")
    template = Template.load(cfg.template)
    check_start_from(cfg.train.acsm.start, cfg.start_from)
    if cfg.start_from is not None:
        from models.checkpoint import load_checkpoint

        load_checkpoint(cfg.start_from)
    # Workers have another working directory.
    start_from = os.path.abspath(cfg.start_from) if cfg.start_from and "://" not in cfg.start_from else cfg.start_from
    lake = Lake(cfg.lake)
    pseudo = None if cfg.selection is None else lineage(lake, cfg.category, cfg.selection)
    train_command(cfg, "acsm", template=template.keep(lake.files), start_from=start_from, pseudo=pseudo)


def check_start_from(start: str | None, start_from: str | None) -> None:
    """Refuse a `train.acsm.start` that `start_from` is missing for, or that it contradicts.

    Raises:
        InputError: the weights would not be what one of the two says.
    """
    if start in ("pose", "former") and start_from is None:
        fix = f"train.acsm.start={start} needs a checkpoint; or set train.acsm.start=null for random weights"
        raise InputError("start_from", "null", fix)
    if start in ("imagenet", None) and start_from is not None:
        fix = f"goes with train.acsm.start=pose or former, not {start or 'null'}"
        raise InputError("start_from", start_from, fix)


def lineage(lake: Lake, category: str, selection: str) -> dict[str, Any]:
    """The `instances`, `pseudo_labels` and `selections` datasets behind a selection, as a job names them.

    Args:
        selection: fingerprint of a `selections` dataset.

    Raises:
        InputError: the lake does not hold it, or not what it was made from.
    """
    chosen = lake.find("selections", category, selection)
    pseudo = lake.find("pseudo_labels", category, str(chosen.identity["pseudo_labels"]))
    instances = lake.find("instances", category, str(pseudo.identity["instances"]))
    made = {"instances": instances, "pseudo_labels": pseudo, "selections": chosen}
    return {t: {"identity": dict(d.identity), "slot": d.slot} for t, d in made.items()}


if __name__ == "__main__":
    main()
