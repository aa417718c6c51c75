"""Metadata rows: formats told apart, parsed, filtered and counted."""

from __future__ import annotations

import bz2
import gzip
import json

import pytest

from pipelines.source_filter import SourceOptions, license_code, word_pattern
from pipelines.sources import PARSERS, RowError, check_source, read_source, select_lines, stream_lines
from tables import InputError

BY_NC = "http://creativecommons.org/licenses/by-nc/2.0/"
BY = "http://creativecommons.org/licenses/by/2.0/"


def v2(key="101", title="A+deer", description="", tags="deer,forest", url=None, license_url=BY, ext="jpg", marker="0"):
    f = [""] * 25
    f[0], f[1], f[2], f[3], f[4] = "7", key, "ab12", "9@N00", "jane%20d"
    f[8], f[9], f[10] = title, description, tags
    f[15], f[16] = f"http://www.flickr.com/photos/9@N00/{key}/", url or f"http://farm1.staticflickr.com/1/{key}_s.jpg"
    f[17], f[18], f[23], f[24] = "Attribution License", license_url, ext, marker
    return "\t".join(f)


def v1(**kwargs):
    f = v2(**kwargs).split("\t")
    return "\t".join([f[1], *f[3:]])


def source(path, **kwargs):
    return {"path": str(path), **kwargs}


def write(tmp_path, lines, name="rows.tsv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


def read(tmp_path, lines, category="deer", **kwargs):
    return read_source(check_source(source(write(tmp_path, lines), **kwargs), category))


def test_v2_and_v1_give_the_same_photo():
    a, b = PARSERS["yfcc_v2"](v2()), PARSERS["yfcc_v1"](v1())
    assert a == b
    assert a.photo_id == "yfcc:101"
    assert a.title == "A deer"
    assert a.tags == ("deer", "forest")
    assert a.author == "jane d"
    assert a.to_fetch()["license"] == f"Attribution License {BY}"
    assert a.page_url.endswith("/101/")
    assert not a.video


def test_empty_fields_at_the_edge_survive():
    row = v2()
    assert row.split("\t")[24] == "0"
    with pytest.raises(RowError, match="24 columns"):
        PARSERS["yfcc_v2"](row.rpartition("\t")[0])
    first_empty = "\t" + row.split("\t", 1)[1]
    assert PARSERS["yfcc_v2"](first_empty).photo_id == "yfcc:101"


def test_real_rows(shared_data):
    path = shared_data / "yfcc" / "sample_v2_25col.tsv"
    options = check_source(source(path), "waterpipe")
    found = read_source(options)
    assert options.format == "yfcc_v2"
    assert [r["photo_id"] for r in found.rows] == ["yfcc:6162540254"]
    assert found.rows[0]["author"] == "henribergius"
    assert found.rows[0]["license"].endswith("by-sa/2.0/")
    assert found.dropped == {"words": 1}
    assert found.rejected == 0


def test_detection(tmp_path):
    assert check_source(source(write(tmp_path, [v2()])), "x").format == "yfcc_v2"
    assert check_source(source(write(tmp_path, [v1()])), "x").format == "yfcc_v1"
    assert check_source(source(write(tmp_path, ["cut row", v1()])), "x").format == "yfcc_v1"
    url = "http://h.org/a.jpg"
    assert check_source(source(write(tmp_path, [url])), "x").format == "urls"
    assert check_source(source(write(tmp_path, [json.dumps({"item_download_url": url, "k": 1})])), "x").format == "urls"


@pytest.mark.parametrize(
    ("lines", "kwargs", "argument"),
    [
        (["a,b,c", "1,2,3"], {}, "source.path"),
        ([""], {}, "source.path"),
        ([v1()], {"format": "yfcc_v2"}, "source.path"),
        ([v2()], {"format": "yfcc_v3"}, "source.format"),
        ([v2()], {"license": "by-xx"}, "source.license"),
        ([v2()], {"license": []}, "source.license"),
        ([v2()], {"words": []}, "source.words"),
        ([v2()], {"words": [" "]}, "source.words"),
        ([v2()], {"mirror": "localhost:80"}, "source.mirror"),
        ([v2()], {"range_mb": 0}, "source.range_mb"),
        ([v2()], {"word": ["deer"]}, "source.word"),
    ],
)
def test_bad_input_names_its_argument(tmp_path, lines, kwargs, argument):
    with pytest.raises(InputError) as caught:
        check_source(source(write(tmp_path, lines), **kwargs), "deer")
    assert caught.value.argument == argument


def test_missing_files(tmp_path):
    for path in (None, tmp_path / "absent.tsv", tmp_path, "nowhere://bucket/rows.tsv"):
        with pytest.raises(InputError, match=r"source\.path"):
            check_source({"path": path and str(path)}, "deer")


def test_rejects_have_line_numbers_and_reasons(tmp_path):
    lines = [v2(), "a\tb", "", v2(key="102", marker="x"), v2(key="1 2"), v2(key="104", url="nothing")]
    found = read(tmp_path, lines)
    assert found.lines == 6
    assert [(r["line"], r["reason"].split()[0]) for r in found.rejects] == [
        (2, "2"), (4, "marker"), (5, "photo"), (6, "download"),
    ]  # fmt: skip
    assert found.rejected == 4
    assert len(found.rows) == 1


def test_filters_count_their_reasons(tmp_path):
    lines = [
        v2(key="1"), v2(key="2", tags="cat", title="cat"), v2(key="3", marker="1"), v2(key="4", ext="tiff"),
        v2(key="5", license_url=BY_NC), v2(key="1"), v2(key="6", license_url=""),
    ]  # fmt: skip
    found = read(tmp_path, lines, license="commercial", extensions=["jpg"])
    assert [r["photo_id"] for r in found.rows] == ["yfcc:1"]
    assert found.dropped == {"words": 1, "video": 1, "extension": 1, "license": 2, "repeated": 1}
    assert [r["photo_id"] for r in read(tmp_path, lines, license=["by-nc"]).rows] == ["yfcc:5"]
    assert len(read(tmp_path, lines).rows) == 4


@pytest.mark.parametrize(
    "fields", [{"title": "My+Deer%21"}, {"description": "two+deers+%28fog%29"}, {"tags": "a,deer"}]
)
def test_words_are_looked_for_in_every_text(tmp_path, fields):
    found = read(tmp_path, [v2(**{"title": "", "tags": "", **fields})])
    assert len(found.rows) == 1


def test_word_forms():
    def has(word, text):
        return bool(word_pattern([word]).search(text))

    assert has("horse", "Horses")
    assert not has("horse", "seahorse")
    assert not has("horse", "horseshoe")
    assert has("pony", "two ponies")
    assert has("wolf", "wolves")
    assert has("fox", "foxes")
    assert has("polar_bear", "a polar bear")
    assert has("polar bear", "polarbears")
    assert has("bär", "ein BÄR.")
    assert not has("a.b", "axb")


def test_synonyms_and_words():
    options = SourceOptions.from_config({"path": "x", "synonyms": {"horse": ["mare"]}}, "horse")
    assert options.words == ("horse", "mare")
    options = SourceOptions.from_config({"path": "x", "words": ["pony"], "synonyms": {"horse": ["mare"]}}, "horse")
    assert options.words == ("pony",)


def test_identity_is_about_filters_only():
    base = SourceOptions.from_config({"path": "x", "license": "any"}, "deer")
    other = SourceOptions.from_config({"path": "y", "format": "yfcc_v1", "mirror": "http://127.0.0.1:9"}, "deer")
    assert base.identity() == other.identity()
    assert base.identity() != SourceOptions.from_config({"path": "x", "license": "commercial"}, "deer").identity()


def test_license_codes():
    assert license_code("https://creativecommons.org/licenses/by-nc-sa/2.0/") == "by-nc-sa"
    assert license_code("http://creativecommons.org/publicdomain/zero/1.0/") == "zero"
    assert license_code("http://example.org/by/") == ""


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_of_several_streams(tmp_path, suffix, pack):
    path = tmp_path / f"rows.tsv{suffix}"
    half = v2(key="2")
    path.write_bytes(pack((v2(key="1") + "\n" + half[:30]).encode()) + pack((half[30:] + "\n").encode()))
    options = check_source(source(path), "deer")
    assert [r["photo_id"] for r in read_source(options).rows] == ["yfcc:1", "yfcc:2"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        read_source(options)


def test_ranges_side_by_side_give_every_line_once(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"aa\n\nbbb\nc\x85\xe2\x80\xa8c\n" + b"d" * 50 + b"\nlast")
    whole = list(stream_lines(str(path)))
    size = path.stat().st_size
    assert whole[-1] == b"last"
    for step in range(1, size + 2):
        parts = [list(stream_lines(str(path), s, min(s + step, size))) for s in range(0, size, step)]
        assert [line for part in parts for line in part] == whole


def test_any_bytes_do_not_crash():
    options = SourceOptions.from_config({"path": "x", "format": "urls"}, "deer")
    lines = [b"\xff\xfe\t" * 24, b"{", b"{}", b"[1]", b'{"item_download_url": 3}', b"\x00", b"http://[bad/a.jpg"]
    for name in PARSERS:
        found = select_lines(lines, options.with_format(name))
        assert found.lines == 7
        assert found.rejected + len(found.rows) + sum(found.dropped.values()) == 7


def test_list_of_urls_needs_no_words(tmp_path):
    found = read(tmp_path, ["http://h.org/a.jpg", '{"item_download_url": "http://h.org/b.JPG"}', "http://h.org/c.txt"],
                 extensions=["jpg"])  # fmt: skip
    assert [r["url"] for r in found.rows] == ["http://h.org/a.jpg", "http://h.org/b.JPG"]
    assert all(r["photo_id"].startswith("url:") for r in found.rows)
    assert found.dropped["extension"] == 1
