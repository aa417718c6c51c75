"""Any text in: no crash, each row once, and the fast path gives what looking at every line gives."""

from __future__ import annotations

import contextlib
import re
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_sources import Found, v1, v2

from pipelines.source_autotags import tagged_ids
from pipelines.source_options import Autotags, SourceOptions
from pipelines.source_words import encoded_pattern, word_pattern
from pipelines.sources import check_source, read_split, splits
from tables import InputError

WORDS = ["deer", "pony", "wolf", "polar bear", "bär", "K9", "kiss", "c++", "a.b"]
OPTIONS = SourceOptions.from_config({"path": "-", "words": WORDS, "extensions": ["jpg", "JPEG", "tiffs"]}, "deer")

# Pieces that have gone wrong in other people's parsers, and pieces of the words in every spelling.
PIECES = st.sampled_from([
    b"\t", b"\n", b"\r", b"\0", b"\xff", b"%", b"%2", b"%zz", b"+", b"_", b"-", b",", b"://", b"http://h/a.jpg",
    b"0", b"1", b"7", b"x", b"%5F", b"%2C", "\u2028".encode(), "\xa0".encode(), "\ufeff".encode(),
    b"deer", b"DEER", b"de", b"er", b"%64eer", b"d%45%65r", b"%0adeer", b"%2deer", b"deer%21", b"deer%41",
    b"ponies", b"Pony", b"wolves", b"wolf", b"polar+bear", b"polar%20-%20bears", b"polarbear", b"a.b", b"a%2eb",
    b"b%C3%A4r", b"B%c3%84R", b"b\xc3\xa4r", b"b%E4r", b"c%2B%2B", b"c++", b"%E2%84%AA9", b"k9",
    b"ki\xc5\xbfs", b"K%C4%B0%53s", b"k\xc4\xb1ss", b"jpg", b"JPG", b"jpg\0", b"tiffs",
])  # fmt: skip
TEXT = st.lists(PIECES | st.binary(max_size=3), max_size=6).map(b"".join)
FIELD = TEXT.map(lambda t: re.sub(rb"[\t\n]", b"", t))


# Values that are nearly right, by the column of v1 that they stand in: id, texts, URL, extension, marker.
NEARLY = {
    0: [b"1", b"22", b"3" * 17, b"0" * 65, b"", b"1a", b"-1", b"1 "],
    6: [b"A+deer", b"pony%21", b"%64eer"],
    7: [b"wolves+and+more", b"%0Adeer", b"deerstalker"],
    8: [b"a,polar+bear", b"polar,bear", b"K%39"],
    14: [b"https://h/a.jpg", b"ftp://h/a.jpg", b"http:/h/a.jpg", b"http://", b"", b"nothing", b"x://"],
    21: [b"", b"png", b"JPG", b"Jpg", b"jpeg", b"tiffs", b"jpg\0", b"jp"],
    22: [b"1", b"", b"2", b"00", b"0\r"],
}


@st.composite
def rows(draw, version):
    """A plain row with some of its fields replaced, and now and then a column too many or too few."""
    first = v2 if version == "yfcc_v2" else v1
    f = first(key=draw(st.sampled_from(["1", "22", "333"])), title="IMG_0520", tags="canon").encode().split(b"\t")
    for column in draw(st.lists(st.sampled_from(sorted(NEARLY)) | st.integers(0, 22), max_size=2)):
        at = column + len(f) - 23 if column else (version == "yfcc_v2")
        f[at] = draw(st.sampled_from(NEARLY.get(column, [b""])) | FIELD)
    if not draw(st.integers(0, 9)):
        f = draw(st.sampled_from([f[1:], f[:-1], [*f, b""]]))
    return b"\t".join(f)


def files(version):
    lines = st.lists(rows(version) | rows(version) | TEXT, max_size=10)
    return st.tuples(lines, st.sampled_from([b"\n", b"\n", b"\r\n"]), st.booleans()).map(
        lambda t: t[1].join(t[0]) + (t[1] if t[2] else b"")
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize("version", ["yfcc_v1", "yfcc_v2"])
def test_the_fast_path_gives_what_every_line_alone_gives(folder, version):
    path = folder / f"{version}.tsv"
    tags = Autotags(str(folder / "tags.txt"), ("deer",), 0.5)
    (folder / "tags.txt").write_text("22\tdeer:0.9\n333\tdeer:0.9\n")

    @settings(max_examples=250)
    @given(files(version), st.booleans())
    def check(data, tagged):
        path.write_bytes(data)
        base = SourceOptions.from_config({"path": str(path), "words": WORDS, "format": version,
                                          "extensions": ["jpg", "JPEG", "tiffs"]}, "deer")  # fmt: skip
        options = SourceOptions(**{**vars(base), "autotags": tags if tagged else None})
        fast, slow = Found(options), Found(options, skim=False)
        assert vars(fast) == vars(slow)
        assert fast.lines == data.count(b"\n") + bool(data and not data.endswith(b"\n"))
        assert len(fast.rows) + len(fast.rejects) + sum(fast.dropped.values()) == fast.lines

    check()
    tagged_ids.cache_clear()


@settings(max_examples=400)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3), FIELD)
@example(["kiss"], b"k%C4%B0\xc5\xbf%73")
@example(["bär"], b"B%C3%84Rs")
def test_encoded_words_are_never_missed(words, text):
    decoded = unquote_plus(text.decode("utf-8", "replace")).replace("_", " ")
    if word_pattern(words).search(decoded):
        assert pc.match_substring_regex(pa.array([b"\t" + text]), encoded_pattern(words)).to_pylist() == [True]


@pytest.mark.parametrize("kind", ["urls", "jsonl", "csv"])
def test_any_bytes_are_rows_rejects_or_drops(folder, kind):
    path = folder / f"any.{kind}"
    quotes = st.sampled_from(
        [b'"', b"{", b"}", b"[", b":", b'{"url": "http://h/\\ud800"}', b'{"url":', b"1e999", b"url"]
    )

    @settings(max_examples=150)
    @given(st.lists(TEXT | quotes, max_size=30).map(b"".join))
    def check(data):
        path.write_bytes((b"url,title\n" if kind == "csv" else b"") + data)
        options = OPTIONS.with_format(kind)
        options = SourceOptions(**{**vars(options), "path": str(path)})
        found = Found(options)
        assert len(found.rows) + len(found.rejects) + sum(found.dropped.values()) == found.lines
        assert all(len(r["text"]) <= 200 for r in found.rejects)

    check()


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["any", "2009", "z"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
KEYS = [
    "format", "url_column", "words", "synonyms", "autotags", "license", "extensions", "per_user", "taken", "box",
    "boxes", "origin", "size", "mirror", "range_mb", "path",
]  # fmt: skip


@settings(max_examples=500)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_a_key_is_taken_or_refused_in_one_line(key, value):
    try:
        options = SourceOptions.from_config({"path": "x", key: value}, "deer")
    except InputError as error:
        refused = error
    else:
        hash(options)
        encoded_pattern(options.words)
        return
    assert refused.argument.startswith(f"source.{key}")


def test_any_words_make_patterns():
    @settings(max_examples=200)
    @given(st.lists(st.text(min_size=1, max_size=8).filter(lambda w: re.sub(r"[\s_-]", "", w)), min_size=1, max_size=3))
    def check(words):
        texts = pa.array([b"\t" + w.encode("utf-8", "replace") for w in words])
        assert all(pc.match_substring_regex(texts, encoded_pattern(words)).to_pylist())

    check()


def test_a_source_may_be_any_file(folder):
    path = folder / "whatever"

    @settings(max_examples=100)
    @given(st.sampled_from([b"", b"PAR1", b"SQLite format 3\0"]), st.binary(max_size=60))
    def check(magic, data):
        path.write_bytes(magic + data)
        with contextlib.suppress(InputError):
            options = check_source({"path": str(path)}, "deer")
            for split in splits(options):
                list(read_split(options, split))

    check()
