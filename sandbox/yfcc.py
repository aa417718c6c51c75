"""Rows of the YFCC100M v2 dump: 25 tab-separated columns, no header, no quoting, text URL-encoded with + for space."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from urllib.parse import quote_plus

import numpy as np

HOST = "photos.sandbox.invalid"  # RFC 2606: this name never resolves, so nothing leaves the machine by mistake
UNAVAILABLE = "/images/photo_unavailable.png"

# Names as the dump writes them, with their share of it.
LICENSES = (
    ("Attribution-NonCommercial-NoDerivs License", "http://creativecommons.org/licenses/by-nc-nd/2.0/", 0.24),
    ("Attribution-NonCommercial-ShareAlike License", "http://creativecommons.org/licenses/by-nc-sa/2.0/", 0.28),
    ("Attribution-NonCommercial License", "http://creativecommons.org/licenses/by-nc/2.0/", 0.15),
    ("Attribution License", "http://creativecommons.org/licenses/by/2.0/", 0.17),
    ("Attribution-ShareAlike License", "http://creativecommons.org/licenses/by-sa/2.0/", 0.10),
    ("Attribution-NoDerivs License", "http://creativecommons.org/licenses/by-nd/2.0/", 0.06),
)
RESERVED = ("All Rights Reserved", "")
CAMERAS = ("Canon EOS 40D", "NIKON D90", "Canon PowerShot SX210 IS", "SONY DSC-W55", "Nokia N950", "iPhone 4", "")
PLACES = ("farm", "hill", "park", "beach", "village", "zoo", "river", "yard", "forest")
ADJECTIVES = ("old", "little", "curious", "brown", "sleepy", "lone", "friendly", "spotted", "young")
OTHER = ("sunset", "birthday", "concert", "bridge", "flowers", "street", "museum", "train", "lake", "snow", "family")
NAMES = ("ana", "jorge", "mika", "tarn", "wren", "pauli", "gnuckx", "henri", "oki", "lumo", "fitz", "dara")


@dataclass(frozen=True)
class Row:
    """The columns of the v2 dump in their order, decoded (see `line` for the encoding)."""

    number: int
    photo_id: int
    hash: str
    user: str
    nickname: str
    taken: str
    uploaded: int
    device: str
    title: str
    description: str
    tags: tuple[str, ...]
    machine_tags: str
    longitude: str
    latitude: str
    accuracy: str
    page_url: str
    download_url: str
    license: str
    license_url: str
    server: int
    farm: int
    secret: str
    secret_original: str
    extension: str
    marker: int

    @property
    def path(self) -> str:
        """The download URL's path on its host."""
        return f"/{self.server}/{self.photo_id}_{self.secret}.jpg"


def line(row: Row) -> str:
    """One line of the dump without its newline."""
    values = []
    for f in fields(row):
        value = getattr(row, f.name)
        if f.name in ("device", "title", "description", "nickname"):
            value = quote_plus(value)
        elif f.name == "tags":
            value = ",".join(quote_plus(tag) for tag in value)
        values.append(str(value))
    return "\t".join(values)


def draw(
    rng: np.random.Generator, number: int, photo_id: int, word: str | None, reserved: bool = False, video: bool = False
) -> Row:
    """A plausible row.

    Args:
        number: line number column.
        word: the word that stands among the tags, the title or the description; None for a row off the topic.
        reserved: no Creative Commons licence.
        video: marker 1.
    """
    user = f"{rng.integers(1_000_000, 99_999_999)}@N{rng.integers(0, 10):02d}"
    nickname = NAMES[rng.integers(len(NAMES))] + ("" if rng.random() < 0.4 else f" {rng.integers(1, 99)}")
    taken = datetime(2004, 1, 1, tzinfo=UTC) + timedelta(seconds=int(rng.integers(0, 10 * 365 * 86400)))
    uploaded = int(taken.timestamp()) + int(rng.integers(0, 60 * 86400))
    place, adjective = PLACES[rng.integers(len(PLACES))], ADJECTIVES[rng.integers(len(ADJECTIVES))]
    extra = [OTHER[i] for i in rng.permutation(len(OTHER))[: rng.integers(0, 4)]]
    tags, title, description = [*extra, place], f"IMG_{rng.integers(1, 9999):04d}", ""
    if word is not None:
        where = rng.random()
        if where < 0.85:
            tags.insert(int(rng.integers(0, len(tags) + 1)), word if rng.random() < 0.8 else f"{adjective} {word}")
        if where >= 0.70:
            title = f"{adjective.capitalize()} {word} at the {place}"
        if rng.random() < 0.2:
            description = f"A {word} we met near the {place}, 100% {adjective} & calm;\nthanks, {nickname}!"
    elif rng.random() < 0.6:
        title = f"{extra[0] if extra else 'Day'} / {place}"
    located = rng.random() < 0.45
    secret, original = (rng.bytes(5).hex() for _ in range(2))
    server, farm = int(rng.integers(1000, 9000)), int(rng.integers(1, 10))
    url = f"http://{HOST}/{server}/{photo_id}_{secret}.jpg"
    shares = np.array([s for _, _, s in LICENSES])
    name, link, _ = LICENSES[int(rng.choice(len(LICENSES), p=shares / shares.sum()))]
    return Row(
        number=number, photo_id=photo_id, hash=mirror_hash(url), user=user, nickname=nickname,
        taken=taken.strftime("%Y-%m-%d %H:%M:%S.0"), uploaded=uploaded, device=CAMERAS[rng.integers(len(CAMERAS))],
        title=title, description=description, tags=tuple(tags), machine_tags="",
        longitude=f"{rng.uniform(-120, 140):.6f}" if located else "",
        latitude=f"{rng.uniform(-45, 65):.6f}" if located else "",
        accuracy=str(rng.integers(8, 17)) if located else "",
        page_url=f"http://{HOST}/photos/{user}/{photo_id}/", download_url=url,
        license=RESERVED[0] if reserved else name, license_url=RESERVED[1] if reserved else link,
        server=server, farm=farm, secret=secret, secret_original=original, extension="jpg", marker=int(video),
    )  # fmt: skip


def mirror_hash(url: str) -> str:
    """The dump's photo hash: md5 of the download URL, each byte printed without zero padding."""
    return "".join(f"{b:x}" for b in hashlib.md5(url.encode(), usedforsecurity=False).digest())


def malformed(rng: np.random.Generator) -> str:
    """A line no parser should trust: cut short in the middle of a column."""
    whole = line(draw(rng, 0, int(rng.integers(10**9, 10**10)), "broken"))
    return whole[: int(rng.integers(40, 90))]
