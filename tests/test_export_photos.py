"""A crawl's photos leave whole, with who made them, the same bytes every time; or nothing appears."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from crawled import crawled, noise, row

from pipelines import export_photos as exporting
from pipelines.attribution import COLUMNS, Attribution, licence_of
from pipelines.export_photos import Exported, Photo, export_photos
from tables import Dataset, InputError, schema

MIB = 2**20
PHOTOS = [f"yfcc:{7_000_000 + i}" for i in range(22)]  # two more are duplicates


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photos large enough that one MiB holds only a few."""
    return crawled(tmp_path_factory.mktemp("lake"), side=384)


def tars(folder: Path) -> dict[str, bytes]:
    """Members of all shards in order."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.uname) == (0, 0, "")
                found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


def test_webdataset_shards_hold_every_photo_once(dataset: Dataset, tmp_path: Path) -> None:
    done = export_photos(dataset, "webdataset", str(tmp_path / "out"), 1)
    assert done == Exported(22, len(list((tmp_path / "out").glob("*.tar"))), 0)
    assert done.shards > 2
    assert max(p.stat().st_size for p in (tmp_path / "out").glob("*.tar")) <= MIB
    members = tars(tmp_path / "out")
    assert list(members) == [f"{p.replace(':', '_')}.{end}" for p in PHOTOS for end in ("jpg", "json")]
    for number, name in enumerate(PHOTOS):
        key = name.replace(":", "_")
        facts = json.loads(members[f"{key}.json"])
        assert facts["photo_id"] == name
        assert facts["license"] == ("CC BY-NC 2.0" if number % 4 else "CC BY 2.0")
        assert members[f"{key}.jpg"] == noise(number, 384)
        assert facts["sha256"] == hashlib.sha256(members[f"{key}.jpg"]).hexdigest()


def test_the_same_crawl_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    for kind in ("webdataset", "parquet"):
        found = []
        for name in ("one", "two"):
            export_photos(dataset, kind, str(tmp_path / kind / name), 1)
            found.append({p.name: p.read_bytes() for p in (tmp_path / kind / name).iterdir()})
        assert found[0] == found[1]
        assert {"ATTRIBUTION.csv", "ATTRIBUTION.md"} < set(found[0])


def test_parquet_shards_carry_licence_author_and_page(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    done = export_photos(dataset, "parquet", str(tmp_path / "out"), 1)
    paths = sorted((tmp_path / "out").glob("*.parquet"))
    assert len(paths) == done.shards > 2
    assert max(p.stat().st_size for p in paths) <= MIB
    rows = pq.read_table(paths).to_pylist()
    assert [r["photo_id"] for r in rows] == PHOTOS
    assert all(hashlib.sha256(r["bytes"]).hexdigest() == r["sha256"] for r in rows)
    assert rows[1]["author"] == "Ana 1"
    assert rows[1]["page_url"] == "http://www.example.org/photos/7000001/"
    assert (rows[4]["license"], rows[4]["license_url"]) == ("CC BY 2.0", "http://creativecommons.org/licenses/by/2.0/")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a file whose fields may be longer than the csv module reads unless told."""
    before = csv.field_size_limit(2**30)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    finally:
        csv.field_size_limit(before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its files to the collector
def test_webdataset_itself_reads_it(dataset: Dataset, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    export_photos(dataset, "webdataset", str(tmp_path / "out"), 1)
    samples = list(webdataset.WebDataset(sorted(map(str, (tmp_path / "out").glob("*.tar"))), shardshuffle=False))
    assert [json.loads(s["json"])["photo_id"] for s in samples] == PHOTOS
    assert samples[0]["jpg"] == noise(0, 384)
    gc.collect()


def test_attribution_names_every_photo(dataset: Dataset, tmp_path: Path) -> None:
    export_photos(dataset, "webdataset", str(tmp_path / "out"), 1)
    rows = read_csv(tmp_path / "out" / "ATTRIBUTION.csv")
    assert [r["photo_id"] for r in rows] == PHOTOS
    assert {r["file"] for r in rows} == {p.name for p in (tmp_path / "out").glob("*.tar")}
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "| [CC BY-NC 2.0](<http://creativecommons.org/licenses/by-nc/2.0/>) | 16 |" in text
    assert (
        "- [yfcc:7000004](<http://www.example.org/photos/7000004/>) by Ana 4, "
        "[CC BY 2.0](<http://creativecommons.org/licenses/by/2.0/>), in `photos-00000.tar`\n"
    ) in text
    assert text.count("\n- ") == 22


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    odd = {
        "author": "[x](http://evil)\n# <b>",
        "license": None,
        "page_url": "javascript:alert(1)",
        "photo_id": "a:b/.._c",
    }
    dataset = crawled(tmp_path / "lake", **odd)
    done = export_photos(dataset, "webdataset", str(tmp_path / "out"), 64)
    assert (done.photos, done.unlicensed) == (22, 1)
    text = (tmp_path / "out" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "- a:b/..\\_c by \\[x\\](http://evil) \\# \\<b\\>, licence not stated, in `photos-00000.tar`\n" in text
    assert next(iter(tars(tmp_path / "out"))) == "a_b%2F%2E%2E%5Fc.jpg"


def test_a_name_may_be_of_any_length(tmp_path: Path) -> None:
    author = 'Ana, "the photographer" ' * 6000  # more than the csv module reads into a field
    dataset = crawled(tmp_path / "lake", author=author)
    export_photos(dataset, "webdataset", str(tmp_path / "out"), 64)
    rows = read_csv(tmp_path / "out" / "ATTRIBUTION.csv")
    assert (len(rows), rows[0]["author"]) == (22, author)
    assert f" by {author.strip()}, [CC BY 2.0]" in (tmp_path / "out" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert sorted(p.name for p in (tmp_path / "out").iterdir())[:2] == ["ATTRIBUTION.csv", "ATTRIBUTION.md"]


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"])
def test_no_cell_is_a_formula(begin: str, tmp_path: Path) -> None:
    hostile = f'{begin}HYPERLINK("http://127.0.0.1/?"&A1,"see")'
    with Attribution(str(tmp_path), "Photos") as out:
        out.add("a.tar", "key", dict.fromkeys(COLUMNS[2:], hostile))
        out.add("a.tar", "key", {**dict.fromkeys(COLUMNS[2:], f"a{hostile}"), "author": None, "license_url": ""})
    first, second = read_csv(tmp_path / "ATTRIBUTION.csv")
    assert first == {"file": "a.tar", "key": "key"} | dict.fromkeys(COLUMNS[2:], f"'{hostile}")
    assert (second["author"], second["license_url"], second["photo_id"]) == ("", "", f"a{hostile}")
    assert "'" not in (tmp_path / "ATTRIBUTION.md").read_text(encoding="utf-8")


def test_keys_differ_where_ids_do() -> None:
    ids = ["a:b", "a_b", "a.b", "a%3Ab", "a/b", "é:b", "a" * 300]
    keys = [Photo({"photo_id": i, "sha256": "ab" * 32}, b"").key for i in ids]
    assert len(set(keys)) == len(ids)
    assert all(k.isascii() and len(k) <= 80 and not set(k) & set("./") for k in keys)


def test_files_end_as_their_bytes_begin(tmp_path: Path) -> None:
    dataset = crawled(tmp_path / "lake", bytes=noise(99, 8, ".png"), photo_id="yfcc:1")
    export_photos(dataset, "webdataset", str(tmp_path / "out"), 64)
    assert "yfcc_1.png" in tars(tmp_path / "out")


def test_nothing_half_written_stays(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = exporting.write_tar

    def full(path: str, photos: Any) -> None:
        written(path, photos)
        raise OSError("disk full")

    monkeypatch.setattr(exporting, "write_tar", full)
    with pytest.raises(OSError, match="disk full"):
        export_photos(dataset, "webdataset", str(tmp_path / "out"), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_crawl_without_photos_is_refused(tmp_path: Path) -> None:
    dataset = crawled(tmp_path / "lake")
    for part in dataset.parts():
        dataset.forget(part)
    dataset.write("s0009-ee", pa.Table.from_pylist([row(1, "gone")], schema("photos")), schema("photos"))
    with pytest.raises(InputError, match="no photo to export"):
        export_photos(dataset, "parquet", str(tmp_path / "out"), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["lake"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Attribution License http://creativecommons.org/licenses/by/2.0/", "CC BY 2.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/de/deed.en", "CC BY-NC-SA 3.0 DE"),
        ("No known restrictions https://www.flickr.com/commons/usage/", "No known restrictions"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0 1.0"),
        ("by-sa", "by-sa"),
        ("", ""),
        (None, ""),
    ],
)
def test_licences_have_their_own_names(text: str | None, expected: str) -> None:
    name, url = licence_of(text)
    assert name == expected
    assert url == ("http" + text.split("http")[1] if text and "http" in text else "")


def test_the_command_exports_and_refuses_in_one_line(dataset: Dataset, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.export", f"lake={dataset.files.uri}", "category=horse", *args]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    out = tmp_path / "out"
    done = run("what=photos", "format=webdataset", f"out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"22 photos in 1 shard, with ATTRIBUTION.csv and ATTRIBUTION.md: {out}\n"
    again = run("what=photos", f"out={out}")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith(f"error: out={out}: there is something in this folder")
