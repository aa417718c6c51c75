"""Metadata in every container: packed, in ranges, as JSON, Parquet, CSV and SQLite; and where bytes come from."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import sqlite3

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_sources import BY, URL, Found, read, source, v1, v2, write

from pipelines.source_files import MAX_LINE, line_blocks
from pipelines.source_origin import commons_key, mirrored
from pipelines.source_rows import YFCC_V1
from pipelines.sources import check_source, splits
from tables import InputError


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_packed_files_of_several_streams(tmp_path, suffix, pack):
    path = tmp_path / f"rows.tsv{suffix}"
    half = v2(key="2")
    path.write_bytes(pack((v2(key="1") + "\n" + half[:30]).encode()) + pack((half[30:] + "\n").encode()))
    options = check_source(source(path, range_mb=0.0001), "deer")
    assert len(splits(options)) == 1
    assert Found(options).ids == ["yfcc:1", "yfcc:2"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        Found(options)


@pytest.mark.parametrize(
    ("name", "data"), [("ROWS.TSV.BZ2", bz2.compress), ("r.Gz", lambda b: gzip.compress(b) + bytes(512))]
)
def test_packed_as_others_pack(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data(v2(key="1").encode() + b"\n"))
    assert read(path).ids == ["yfcc:1"]
    assert splits(check_source(source(path), "deer")) == [{}]


def test_ranges_side_by_side_give_every_line_once(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"aa\n\nbbb\nc\x85\xe2\x80\xa8c\n" + b"d" * 50 + b"\nlast")
    whole = b"".join(line_blocks(str(path)))
    size = path.stat().st_size
    assert whole == path.read_bytes() + b"\n"
    for step in range(1, size + 2):
        assert (
            b"".join(b for s in range(0, size, step) for b in line_blocks(str(path), s, min(s + step, size))) == whole
        )


def test_a_line_without_end_is_one_reject(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(v2(key="1").encode() + b"\n" + b"x" * (9 * MAX_LINE) + b"\n" + v2(key="2").encode())
    found = read(path)
    assert found.ids == ["yfcc:1", "yfcc:2"]
    assert [(r["line"], r["reason"], len(r["text"])) for r in found.rejects] == [
        (2, f"a line of more than {MAX_LINE} bytes", 200)
    ]


def test_list_of_urls_needs_no_words(tmp_path):
    found = read(write(tmp_path, [URL, "file:///data/b.JPG", "http://h.org/c.txt", "no url"]), extensions=["jpg"])
    assert [r["url"] for r in found.rows] == [URL, "file:///data/b.JPG"]
    assert all(r["photo_id"].startswith("url:") for r in found.rows)
    assert found.dropped["extension"] == 1
    assert [r["line"] for r in found.rejects] == [4]


RICH = {"item_download_url": URL, "title": "A deer", "tags": ["wood"], "license": BY, "author": "jane", "User": "j1",
        "page_url": "http://h.org/p/", "views": 7}  # fmt: skip
RICH_ROW = {"url": URL, "fetch_url": URL, "license": BY, "author": "jane", "page_url": "http://h.org/p/", "user": "j1"}


def test_json_keeps_what_is_known(tmp_path):
    rows = [RICH, {**RICH, "title": "A cat"}, {"url": "http://h.org/b.jpg"}, {"item_download_url": 3}, [1]]
    lines = [*map(json.dumps, rows), "{", '{"url": "http://h.org/\\ud800.jpg"}', "[" * 10_000]
    found = read(write(tmp_path, lines), license="commercial")
    assert [{k: r[k] for k in RICH_ROW} for r in found.rows] == [RICH_ROW]
    assert found.dropped == {"words": 1, "license": 2}
    assert [r["line"] for r in found.rejects] == [4, 5, 6, 8]
    both = [json.dumps({"src": "http://h.org/1.jpg", "url": "http://h.org/2.jpg"})]
    assert read(write(tmp_path, both), url_column="src").rows[0]["url"] == "http://h.org/1.jpg"


def test_parquet_by_row_groups(tmp_path):
    rows = [RICH, *({"item_download_url": f"http://h.org/{i}.jpg"} for i in range(9)), {"title": "deer"}]
    path = tmp_path / "list.parquet"
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(k, pa.list_(pa.string()) if k == "tags" else
        pa.int64() if k == "views" else pa.string()) for k in RICH])), path, row_group_size=4)  # fmt: skip
    options = check_source(source(path, range_mb=1e-6), "deer")
    assert options.format == "parquet"
    assert len(splits(options)) == 3
    assert len(splits(check_source(source(path), "deer"))) == 1
    found = Found(options)
    assert {k: found.rows[0][k] for k in RICH_ROW} == RICH_ROW
    assert (len(found.rows), found.lines) == (10, 11)
    assert [(r["line"], r["reason"]) for r in found.rejects] == [(11, "no URL in item_download_url: ''")]
    with pytest.raises(InputError, match=r"source\.url_column=picture: name the column"):
        check_source(source(path, url_column="picture"), "deer")


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        (pa.timestamp("s"), [10**4, 10**15]),
        (pa.timestamp("ms", "UTC"), [10**4, -(10**15)]),
        (pa.date32(), [10**4, 10**8]),
        (pa.list_(pa.timestamp("s")), [[10**4], [10**15]]),
    ],
)
def test_a_date_that_python_has_none_for_tells_nothing(tmp_path, kind, taken):
    path = tmp_path / "far.parquet"
    urls = ["http://h.org/0.jpg", "http://h.org/1.jpg"]
    pq.write_table(pa.table({"url": urls, "taken": pa.array(taken, kind)}), path)
    assert [r["url"] for r in read(path).rows] == urls
    assert [r["url"] for r in read(path, taken=[None, 2050]).rows] == ([] if pa.types.is_list(kind) else urls[:1])


def test_csv_with_quotes(tmp_path):
    path = tmp_path / "list.csv"
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["id", "Image_URL", "caption"])
        out.writerow([1, URL, "two\ndeer, in fog"])
        out.writerow([2, "http://h.org/b.jpg", "cats"])
        f.write("3,4\n\n")
        out.writerow([5, "http://h.org/c.jpg", ""])
        f.write(f'6,{URL},"never closed\n')
    found = read(path)
    assert [r["url"] for r in found.rows] == [URL, "http://h.org/c.jpg"]
    assert found.dropped == {"words": 1, "header": 1, "blank": 1, "quoted": 1}
    assert [(r["line"], r["text"]) for r in found.rejects] == [(5, "3\t4"), (8, f'6,{URL},"never closed\n')]
    assert found.lines == 8


@pytest.mark.parametrize("close", ["deer", '"deer"', 'deer "x"'])
def test_an_open_quote_costs_its_line_only(tmp_path, close):
    urls = [f"http://h.org/{i}.jpg" for i in range(1000)]
    lines = ["", "url,caption", f'{URL},"fog', *(f"{u},deer" for u in urls)]
    lines[100] = lines[100].replace("deer", close)
    found = read(write(tmp_path, lines, "list.csv"))
    assert [r["url"] for r in found.rows] == urls
    assert found.dropped == {"header": 1, "blank": 1}
    assert [(r["line"], r["text"]) for r in found.rejects] == [(3, f'{URL},"fog\n')]
    assert found.lines == 1003


def test_sqlite_in_ranges_of_rowid(tmp_path):
    path = tmp_path / "dump.db"
    rows = [v1(key=str(k)).split("\t") for k in range(1, 8)]
    rows[3][22], rows[4][6], rows[4][8], rows[5][0] = "1", "cat", None, "no\nid"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE other (a)")
        db.execute(f"CREATE TABLE yfcc100m_dataset ({', '.join(YFCC_V1)})")
        db.executemany(f"INSERT INTO yfcc100m_dataset VALUES ({', '.join('?' * 23)})", rows)
        db.execute("DELETE FROM yfcc100m_dataset WHERE rowid = 2")
    db.close()
    options = check_source(source(path, range_mb=path.stat().st_size / 4 / 2**20), "deer")
    assert options.format == "sqlite"
    assert splits(options) == [{"first": 1, "last": 2}, {"first": 3, "last": 4}, {"first": 5, "last": 6},
                               {"first": 7, "last": 7}]  # fmt: skip
    found = Found(options)
    assert found.ids == ["yfcc:1", "yfcc:3", "yfcc:7"]
    assert found.dropped == {"video": 1, "words": 1}
    assert (found.lines, [(r["line"], r["reason"]) for r in found.rejects]) == (6, [(5, "photo id 'no id'")])
    assert found.rows[0] == {**read(write(tmp_path, [v1(key="1")])).rows[0]}
    with sqlite3.connect(tmp_path / "other.db") as db:
        db.execute("CREATE TABLE other (a)")
    db.close()
    with pytest.raises(InputError, match="no table of it has"):
        check_source(source(tmp_path / "other.db"), "deer")
    (tmp_path / "cut.db").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="SQLite"):
        Found(check_source(source(tmp_path / "cut.db"), "deer"))


def database(path, rows, key="photoid", kind=""):
    with sqlite3.connect(path) as db:
        db.execute(f"CREATE TABLE t ({', '.join([key, *YFCC_V1[1:]])}) {kind}")
        db.executemany(f"INSERT INTO t VALUES ({', '.join('?' * 23)})", rows)
    db.close()
    return path


def test_sqlite_with_photo_ids_as_rowids(tmp_path):
    keyed = "photoid INTEGER PRIMARY KEY"
    path = database(tmp_path / "sparse.db", [v1(key=k).split("\t") for k in ("1", "2", str(4 * 10**15))], keyed)
    options = check_source(source(path, range_mb=0.001), "deer")
    assert len(splits(options)) == 2
    assert Found(options).ids == ["yfcc:1", "yfcc:2", "yfcc:4000000000000000"]
    path = database(tmp_path / "bare.db", [], keyed, "WITHOUT ROWID")
    with pytest.raises(InputError, match="is WITHOUT ROWID; copy it"):
        check_source(source(path), "deer")


def test_sqlite_values_with_a_tab_or_a_nul(tmp_path):
    rows = [v1(key=str(k), tags="").split("\t") for k in range(4)]
    rows[0][6], rows[1][6], rows[2][14], rows[3][6] = "two\tdeer\nin\tfog", "a\tcat", "http://h.org/c.jpg\0x", None
    rows[3][7] = b"a\tdeer"
    found = read(database(tmp_path / "odd.db", rows))
    assert found.ids == ["yfcc:0", "yfcc:2", "yfcc:3"]
    assert (found.rows[1]["url"], found.dropped, found.rejects) == ("http://h.org/c.jpg", {"words": 1}, [])


def test_where_bytes_come_from(tmp_path):
    url = "http://farm1.staticflickr.com/1/101_ab.jpg"
    path = write(tmp_path, [v2(ext="png"), v2(key="102", url="http://h.org/x.jpg")])

    def fetched(**kwargs):
        found = read(path, **kwargs)
        assert found.rows[0]["url"] == url
        return found, found.rows[0]["fetch_url"]

    assert fetched()[1] == url
    assert fetched(size="b")[1] == url
    found, at = fetched(origin="flickr", size="b")
    assert at == "http://farm1.staticflickr.com/1/101_ab_b.jpg"
    assert (found.ids, found.dropped) == (["yfcc:101"], {"origin": 1})
    assert fetched(origin="flickr", size="o")[1] == "http://farm1.staticflickr.com/1/101_0def_o.png"
    assert fetched(origin="flickr")[1] == url
    found, at = fetched(origin="commons")
    assert at == "https://multimedia-commons.s3-us-west-2.amazonaws.com" + commons_key(url)
    assert len(found.rows) == 2


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:8000", "file:///data/photos", r"http://h/a\1"])
def test_a_mirror_keeps_path_and_query(mirror):
    column = pa.chunked_array([["https://u@h.org:80/a/b.jpg?c=d://e", "http://h.org?x", "none"]])
    assert mirrored(column, mirror).to_pylist() == [f"{mirror}/a/b.jpg?c=d://e", f"{mirror}?x", "none"]
