"""Train the centre-and-size detector on the labelled boxes."""

from __future__ import annotations

from typing import Any

from trainers.app import command


@command("detector")
def main(cfg: Any) -> None:
    from trainers.command import train_command

    train_command(cfg, "detector")


if __name__ == "__main__":
    main()
