"""Train the 2D keypoint network on the labels."""

from __future__ import annotations

from typing import Any

from tables import InputError
from trainers.app import command


@command("pose")
def main(cfg: Any) -> None:
    from trainers.command import train_command

    if cfg.net not in ("pose", "aux"):
        raise InputError("net", cfg.net, "use pose or aux")
    train_command(cfg, cfg.net)


if __name__ == "__main__":
    main()
