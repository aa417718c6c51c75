"""Metadata rows: formats told apart, parsed, filtered and counted."""

from __future__ import annotations

import bz2
import json
from collections import Counter

import pyarrow as pa
import pytest

from pipelines.source_filter import license_code
from pipelines.source_options import SourceOptions
from pipelines.source_origin import commons_key
from pipelines.source_rows import RowError, yfcc_line
from pipelines.source_words import word_pattern
from pipelines.sources import WANTED, check_source, read_split, splits
from tables import InputError

BY_NC = "http://creativecommons.org/licenses/by-nc/2.0/"
BY = "http://creativecommons.org/licenses/by/2.0/"
URL = "http://h.org/a.jpg"


def v2(key="101", title="A+deer", description="", tags="deer,forest", url=None, license_url=BY, ext="jpg", marker="0",
       taken="2012-02-16 09:56:37.0", place=("", ""), user="9@N00"):  # fmt: skip
    f = [""] * 25
    f[0], f[1], f[2], f[3], f[4], f[5] = "7", key, "ab12", user, "jane%20d", taken
    f[8], f[9], f[10], f[12], f[13] = title, description, tags, *place
    f[15], f[16] = f"http://www.flickr.com/photos/9@N00/{key}/", url or f"http://farm1.staticflickr.com/1/{key}_ab.jpg"
    f[17], f[18], f[22], f[23], f[24] = "Attribution License", license_url, "0def", ext, marker
    return "\t".join(f)


def v1(**kwargs):
    f = v2(**kwargs).split("\t")
    return "\t".join([f[1], *f[3:]])


def parse(line):
    return yfcc_line(line.encode(), line.count("\t") + 1)


def source(path, **kwargs):
    return {"path": str(path), **kwargs}


def write(tmp_path, lines, name="rows.tsv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    return path


class Found:
    """All splits of a source together."""

    def __init__(self, options, **how):
        parts = splits(options)
        assert json.loads(json.dumps(parts)) == parts
        read = [list(read_split(options, p, **how)) for p in parts]
        blocks = [b for part in read for b in part]
        self.rows = pa.concat_tables([WANTED.empty_table(), *(b.wanted for b in blocks)]).to_pylist()
        self.ids = [r["photo_id"] for r in self.rows]
        self.dropped = sum((b.dropped for b in blocks), Counter())
        self.lines = sum(b.lines for b in blocks)
        self.rejects = []
        before = 0
        for part in read:
            for b in part:
                self.rejects += [{**r, "line": r["line"] + before} for r in b.rejects.to_pylist()]
            before += sum(b.lines for b in part)


def read(path, category="deer", **kwargs):
    return Found(check_source(source(path, **kwargs), category))


def test_v2_and_v1_give_the_same_photo():
    a, b = parse(v2()), parse(v1())
    assert a == b
    assert a.photo_id == "yfcc:101"
    assert a.title == "A deer"
    assert a.tags == ("deer", "forest")
    assert (a.author, a.user) == ("jane d", "9@N00")
    assert a.page_url.endswith("/101/")
    assert not a.video


def test_empty_fields_at_the_edge_survive():
    row = v2()
    with pytest.raises(RowError, match="24 columns"):
        yfcc_line(row.rpartition("\t")[0].encode(), 25)
    assert parse("\t" + row.split("\t", 1)[1]).photo_id == "yfcc:101"


def test_real_rows(shared_data):
    path = shared_data / "yfcc" / "sample_v2_25col.tsv"
    found = read(path, "waterpipe")
    assert check_source(source(path), "x").format == "yfcc_v2"
    assert found.ids == ["yfcc:6162540254"]
    assert (found.rows[0]["author"], found.rows[0]["user"]) == ("henribergius", "15087210@N00")
    assert found.rows[0]["license"].endswith("by-sa/2.0/")
    assert (found.dropped, found.rejects) == ({"words": 1}, [])


def test_the_bucket_key_of_real_rows_is_their_hash(shared_data):
    lines = (shared_data / "yfcc" / "sample_v2_25col.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert len(rows) == 2
    for row in rows:
        h = row[2]
        assert commons_key(row[16]) == f"/data/images/{h[:3]}/{h[3:6]}/{h}.jpg"


def test_detection(tmp_path):
    for lines, kind in [
        ([v2()], "yfcc_v2"), ([v1()], "yfcc_v1"), (["cut row", v1()], "yfcc_v1"), ([URL], "urls"),
        ([json.dumps({"item_download_url": URL, "k": 1})], "jsonl"), (["id,Image_URL", f"1,{URL}"], "csv"),
    ]:  # fmt: skip
        assert check_source(source(write(tmp_path, lines)), "x").format == kind


@pytest.mark.parametrize(
    ("lines", "kwargs", "argument"),
    [
        (["a,b,c", "1,2,3"], {}, "source.path"),
        ([""], {}, "source.path"),
        ([v2()], {"format": "parquet"}, "source.path"),
        ([v2()], {"format": "csv"}, "source.url_column"),
        (["a,b", f"1,{URL}"], {"format": "csv", "url_column": "c"}, "source.url_column"),
        ([v2()], {"format": "yfcc_v3"}, "source.format"),
        ([v2()], {"license": "by-xx"}, "source.license"),
        ([v2()], {"license": []}, "source.license"),
        ([v2()], {"words": []}, "source.words"),
        ([v2()], {"words": 5}, "source.words"),
        ([v2()], {"words": [" "]}, "source.words"),
        ([v2()], {"mirror": "localhost:80"}, "source.mirror"),
        ([v2()], {"mirror": "file://"}, "source.mirror"),
        ([v2()], {"range_mb": 0}, "source.range_mb"),
        ([v2()], {"range_mb": "abc"}, "source.range_mb"),
        ([v2()], {"word": ["deer"]}, "source.word"),
        ([v2()], {"per_user": -1}, "source.per_user"),
        ([v2()], {"taken": ["May", None]}, "source.taken"),
        ([v2()], {"box": [0, 50, 10, 40]}, "source.box"),
        ([v2()], {"box": "atlantis", "boxes": {"here": [0, 0, 1, 1]}}, "source.box"),
        ([v2()], {"origin": "flickr", "size": "k"}, "source.size"),
        ([v2()], {"autotags": {"path": "none.txt"}}, "source.autotags.path"),
        ([v2()], {"autotags": {"threshold": 2}}, "source.autotags.threshold"),
    ],
)
def test_bad_input_names_its_argument(tmp_path, lines, kwargs, argument):
    with pytest.raises(InputError) as caught:
        check_source(source(write(tmp_path, lines), **kwargs), "deer")
    assert caught.value.argument == argument
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    for path in (None, tmp_path / "absent.tsv", tmp_path, "nowhere://bucket/rows.tsv", "a\0b"):
        with pytest.raises(InputError, match=r"source\.path"):
            check_source({"path": path and str(path)}, "deer")


def test_rejects_have_line_numbers_reasons_and_text(tmp_path):
    lines = [v2(), "a\tb", "", v2(key="102", marker="x"), v2(key="1 2"), v2(key="104", url="nothing")]
    found = read(write(tmp_path, lines))
    assert (found.lines, found.dropped) == (6, {"blank": 1})
    assert [(r["line"], r["reason"].split()[0], r["text"]) for r in found.rejects] == [
        (2, "2", "a\tb"), (4, "marker", lines[3][:200]), (5, "photo", lines[4][:200]), (6, "download", lines[5][:200]),
    ]  # fmt: skip
    assert found.ids == ["yfcc:101"]


def test_a_format_that_is_named_is_not_doubted(tmp_path):
    path = write(tmp_path, [""] * 2 + ["bad"] * 120 + [URL, v2(key="1")])
    found = read(path, format="yfcc_v2")
    assert (found.ids, len(found.rejects), found.dropped) == (["yfcc:1"], 121, {"blank": 2})
    assert len(read(path, format="jsonl").rejects) == 122
    with pytest.raises(InputError, match="it is not sqlite"):
        read(path, format="sqlite")


def test_filters_count_their_reasons(tmp_path):
    lines = [
        v2(key="1"), v2(key="2", tags="cat", title="cat"), v2(key="3", marker="1"), v2(key="4", ext="tiff"),
        v2(key="5", license_url=BY_NC), v2(key="6", license_url=""),
    ]  # fmt: skip
    path = write(tmp_path, lines)
    found = read(path, license="commercial", extensions=["jpg"])
    assert found.ids == ["yfcc:1"]
    assert found.dropped == {"words": 1, "video": 1, "extension": 1, "license": 2}
    assert read(path, license=["by-nc"]).ids == ["yfcc:5"]
    assert len(read(path).ids) == 4


def test_date_and_place(tmp_path):
    path = write(tmp_path, [
        v2(key="1", taken="2009-05-31 23:59:59.0", place=("10.5", "50")), v2(key="2", taken="2009-06-01 00:00:00.0"),
        v2(key="3", taken="", place=("179", "-17")), v2(key="4", taken="null", place=("-179.5", "-17")),
    ])  # fmt: skip
    assert read(path, taken=["2009-05", "2009-05"]).ids == ["yfcc:1"]
    assert read(path, taken=[2009, None]).ids == ["yfcc:1", "yfcc:2"]
    assert read(path, taken=[None, "2009-06-01"]).dropped == {"taken": 2}
    assert read(path, box="germany", boxes={"germany": [5.8, 47.2, 15.1, 55.1]}).ids == ["yfcc:1"]
    assert read(path, box=[177, -20, -178, -15]).ids == ["yfcc:3", "yfcc:4"]
    assert read(path, box=[177, -20, -178, -15]).dropped == {"box": 2}


def test_a_row_passes_by_its_text_or_by_an_autotag(tmp_path):
    silent = {"title": "", "tags": ""}
    lines = [v2(key="1"), v2(key="2", **silent), v2(key="3", **silent), v2(key="4", **silent), v2(key="5", **silent)]
    tags = tmp_path / "autotags.bz2"
    told = "1\t\n2\toutdoor:0.9,Deer:0.81\n3\tdeer:0.7\n4\tdeerstalker:0.99,red+deer:0.99\nx\tdeer:1\n5\tstag:0.9\n"
    tags.write_bytes(bz2.compress(told.encode()))
    path = write(tmp_path, lines)
    assert read(path, autotags={"path": str(tags)}).ids == ["yfcc:1", "yfcc:2"]
    assert read(path, autotags={"path": str(tags), "threshold": 0.5}).ids == ["yfcc:1", "yfcc:2", "yfcc:3"]
    found = read(path, autotags={"path": str(tags)}, synonyms={"deer": ["stag", "red deer"]})
    assert found.ids == ["yfcc:1", "yfcc:2", "yfcc:4", "yfcc:5"]
    assert found.dropped == {"words": 1}
    with pytest.raises(InputError, match=r"source\.autotags\.path"):
        read(path, autotags={"path": str(path)})


@pytest.mark.parametrize(
    "fields", [{"title": "My+Deer%21"}, {"description": "two+deers+%28fog%29"}, {"tags": "a,deer"}]
)
def test_words_are_looked_for_in_every_text(tmp_path, fields):
    assert len(read(write(tmp_path, [v2(**{"title": "", "tags": "", **fields})])).ids) == 1


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


def test_identity_is_about_filters_and_sizes_only():
    base = SourceOptions.from_config({"path": "x", "license": "any"}, "deer")
    other = SourceOptions.from_config({"path": "y", "format": "yfcc_v1", "mirror": "http://127.0.0.1:9"}, "deer")
    assert base.identity() == other.identity()
    for change in ({"license": "commercial"}, {"per_user": 3}, {"origin": "flickr", "size": "z"}):
        assert base.identity() != SourceOptions.from_config({"path": "x", **change}, "deer").identity()


def test_license_codes():
    assert license_code("https://creativecommons.org/licenses/by-nc-sa/2.0/") == "by-nc-sa"
    assert license_code("http://creativecommons.org/publicdomain/zero/1.0/") == "zero"
    assert license_code("CC BY-SA 4.0") == license_code("cc-by-sa-4.0") == license_code("by-sa") == "by-sa"
    assert license_code("CC0") == "zero"
    assert license_code("http://example.org/by/") == ""
