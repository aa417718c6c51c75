"""One photo or a folder in, animals in 3D out: a picture, posed meshes and a JSON for each photo. Starts no Ray."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tables import InputError
from trainers.app import Exit, command

PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".gif")  # what of a folder is a photo


@command("predict")
def run(cfg: Any) -> None:
    from rich.console import Console

    from pipelines.chosen_models import Chosen
    from pipelines.detect_rules import Rules

    paths = photo_files(cfg)
    folder = check_out(cfg.out, paths)
    rules = Rules.read(_plain(cfg.detect))
    chosen = Chosen(cfg)
    acsm, pose, (kind, detector) = chosen.acsm, chosen.pose, chosen.detector

    from pipelines.photo_reader import PhotoReader
    from pipelines.predict_files import names_of, networks, write_photo
    from pipelines.stage import progress_bar
    from pipelines.trained_on import sentence
    from trainers.jobs import set_threads

    set_threads(int(cfg.resources.threads))
    reader = PhotoReader(acsm, pose, kind, detector, rules, str(cfg.category))
    made_by = networks(acsm, pose, kind, detector, reader)
    console, names = Console(soft_wrap=True, highlight=False), names_of(paths)
    for name, network in made_by.items():
        console.print(f"{name}: {sentence(network)}", markup=False)
    counts: Counter[str] = Counter()
    with progress_bar() as bar:
        task = bar.add_task("photos", total=len(paths))
        for seen in reader(paths):
            write_photo(folder, names[seen.place], seen, reader.acsm, made_by)
            counts[seen.status] += 1
            counts["animals"] += len(seen.animals)
            if seen.status == "no_animal":
                fix = f"lower detect.score ({rules.score:g}) or name other detect.classes"
                console.print(f"{seen.path}: no animal found; {fix}", markup=False)
            elif seen.status != "ok":
                console.print(f"{seen.path}: {seen.status}: {seen.error}", markup=False)
            bar.advance(task)
    lost = len(paths) - counts["ok"] - counts["no_animal"]
    others = [f"{counts['no_animal']:,} without an animal"] * bool(counts["no_animal"])
    others += [f"{lost:,} could not be looked at"] * bool(lost)
    found = f"{counts['animals']:,} animal{'s' * (counts['animals'] != 1)} in {counts['ok']:,} of {len(paths):,} photos"
    console.print(f"{', '.join([found, *others])}: {folder}", markup=False)
    if lost > cfg.resources.failure_budget * len(paths):
        sys.exit(Exit.LOST)
    if not counts["ok"]:
        sys.exit(Exit.NO_ANIMAL)


def main() -> None:
    """The command; arguments before the first key are photos."""
    sys.argv[1:] = with_photos(sys.argv[1:])
    run()


def with_photos(arguments: Sequence[str]) -> list[str]:
    """`a.jpg b.jpg out=x` -> `photos=["a.jpg","b.jpg"] out=x`, so that a shell's *.jpg will do."""
    n = next((i for i, a in enumerate(arguments) if a[:1] in "-~+" or "=" in a), len(arguments))
    quoted = ",".join('"' + a.replace('"', '\\"') + '"' for a in arguments[:n])
    return [*([f"photos=[{quoted}]"] if n else []), *arguments[n:]]


def photo_files(cfg: Any) -> list[str]:
    """The photos that `photos` names, those of a folder by name.

    Raises:
        InputError: it is missing, or names nothing.
    """
    from omegaconf import OmegaConf

    if OmegaConf.is_missing(cfg, "photos") or not cfg.photos:
        raise InputError("photos", "", "is required; say photos=<photo or folder>")
    paths: list[str] = []
    for given in cfg.photos if OmegaConf.is_list(cfg.photos) else [cfg.photos]:
        path = str(given)
        if os.path.isdir(path):
            inside = sorted(n for n in os.listdir(path) if n.lower().endswith(PHOTOS))
            if not inside:
                raise InputError("photos", path, f"no photo lies in this folder ({', '.join(PHOTOS)})")
            paths += [os.path.join(path, n) for n in inside]
        elif not os.path.exists(path):
            raise InputError("photos", path, "no such file or folder")
        else:
            paths.append(path)
    return paths


def check_out(out: Any, paths: Sequence[str] = ()) -> str:
    """A local folder to write to, made if need be.

    Raises:
        InputError: it is none, cannot be made, or holds the photos themselves.
    """
    if not isinstance(out, str) or not out or "://" in out:
        raise InputError("out", "null" if out is None else out, "name a local folder to write to")
    if os.path.realpath(out) in {os.path.dirname(os.path.realpath(p)) for p in paths}:
        raise InputError("out", out, "the photos lie in this folder; name another")
    try:
        os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise InputError("out", out, f"no folder that can be written to ({error.strerror})") from None
    if not os.access(out, os.W_OK):
        raise InputError("out", out, "no folder that can be written to")
    return out


def _plain(cfg: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(cfg, resolve=True)


if __name__ == "__main__":
    main()
