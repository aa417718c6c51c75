"""A lake in an S3-compatible store: whole files or none, what is asked of the server, and what is refused."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from bucket import Bucket, open_bucket
from looped import environment
from test_acsm import TEMPLATE

from models.template import Template
from tables import Dataset, Files, InputError, Lake, locate, schema
from trainers.app import check_lake
from trainers.tracking import store_of

PART = 10 << 20  # bytes above which an upload goes in parts


@pytest.fixture(scope="module")
def served() -> Iterator[Bucket]:
    with open_bucket() as bucket:
        yield bucket


@pytest.fixture
def bucket(served: Bucket) -> Bucket:
    served.requests.clear()
    return served


def metrics(lake: Lake, parts: int = 3) -> Dataset:
    dataset = lake.dataset("metrics", "deer", {"n": 1})
    for i in range(parts):
        rows = [{"model": "m", "model_id": f"{i}{n}", "split": "test", "auc_06_10": 1.5 * i} for n in range(4)]
        dataset.write(f"p{i}", pa.Table.from_pylist(rows, schema("metrics")), schema("metrics"))
    dataset.finish("in", {"rows": 4 * parts})
    return dataset


def test_a_file_is_one_put_and_is_there_at_once(bucket: Bucket) -> None:
    files = Files("s3://bucket/one")
    assert files.read("a/b.json") is None
    bucket.requests.clear()
    files.write_json("a/b.json", {"n": 1})
    assert bucket.requests == ["PUT /bucket/one/a/b.json"]
    assert (files.read_json("a/b.json"), files.names("a"), files.names("a", ".txt")) == ({"n": 1}, ["b.json"], [])
    files.write_json("a/b.json", {"n": 2})
    files.write("a/empty", b"")
    assert (files.read_json("a/b.json"), files.read("a/empty"), files.names("a")) == (
        {"n": 2},
        b"",
        ["b.json", "empty"],
    )


def test_a_large_file_goes_up_in_parts_and_a_killed_writer_leaves_none(bucket: Bucket) -> None:
    files, data = Files("s3://bucket/large"), os.urandom(PART + PART // 2)
    files.write("whole", data)
    assert files.read("whole") == data
    assert sum("partNumber=" in request for request in bucket.requests) == 2
    killed = (
        "import os; from tables import Files; f = Files('s3://bucket/large');"
        f"out = f.fs.open_output_stream(f.full('cut')); out.write(bytes({3 * PART})); out.flush(); os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", killed], env=environment(), timeout=120, check=False)
    assert done.returncode == 9
    assert any("cut?partNumber=" in request or "cut?uploads" in request for request in bucket.requests)
    assert (files.names(""), files.read("cut")) == (["whole"], None)


def test_a_dataset_is_what_it_is_on_a_disk(bucket: Bucket, tmp_path: Path) -> None:
    there, here = metrics(Lake("s3://bucket/tables")), metrics(Lake(str(tmp_path)))
    assert (there.parts(), there.state(), there.path) == (here.parts(), here.state(), here.path)
    assert there.read().equals(here.read())
    for dataset in (there, here):
        dataset.forget("p1")
        over = {"model_id": ["00"], "model": ["other"]}
        dataset.overlay(pa.table(over))
        dataset.unfinish()
    assert (there.parts(), there.state()) == (["p0", "p2"], here.state())
    assert there.read(["model_id", "model"]).equals(here.read(["model_id", "model"]))
    lake = Lake("s3://bucket/tables/")
    with pytest.raises(InputError, match="has no finished `metrics`"):
        lake.datasets("metrics", "deer")
    there.finish("in")
    (found,) = lake.datasets("metrics", "deer")
    assert (found.fingerprint, lake.uri) == (there.fingerprint, "s3://bucket/tables")


def test_what_is_done_is_told_by_names_alone(bucket: Bucket) -> None:
    dataset = metrics(Lake("s3://bucket/names"))
    bucket.requests.clear()
    assert dataset.parts() == ["p0", "p1", "p2"]
    assert len(bucket.requests) == 1


def test_a_process_opens_a_store_once_and_others_open_their_own(bucket: Bucket) -> None:
    files = Files("s3://bucket/a")
    assert files.fs is Files("s3://bucket/b").fs
    assert locate("s3://bucket/a/b c.json")[1] == "bucket/a/b c.json"
    sent = pickle.dumps(files)
    assert len(sent) < 200  # the address, no connection and no secret
    assert pickle.loads(sent).full("x") == "bucket/a/x"


def test_a_busy_server_is_asked_again(bucket: Bucket) -> None:
    files = Files("s3://bucket/busy")
    bucket.busy = 2
    files.write("a", b"x")
    assert (bucket.busy, bucket.requests) == (0, ["PUT /bucket/busy/a"] * 3)
    bucket.busy = 2
    assert files.read("a") == b"x"


def test_what_must_be_local_lies_apart_for_each_lake(bucket: Bucket, tmp_path: Path) -> None:
    assert Files(str(tmp_path)).local("a/_spool") == str(tmp_path / "a" / "_spool")
    assert Files(f"file://{tmp_path}").local("a") == str(tmp_path / "a")
    one, other = (Files(f"s3://bucket/{name}").local("a") for name in ("one", "other"))
    assert one != other
    assert Path(one).is_relative_to(tempfile.gettempdir())
    assert not Path(one).exists()


def test_a_template_travels_through_the_lake(bucket: Bucket) -> None:
    files = Files("s3://bucket/templates-of")
    path = TEMPLATE.keep(files)
    assert path == f"s3://bucket/templates-of/templates/{TEMPLATE.digest}.template"
    assert Template.load(path) == TEMPLATE
    with pytest.raises(InputError, match="no such file"):
        Template.load("s3://bucket/templates-of/none.template")


@pytest.mark.parametrize(
    ("lake", "said"),
    [
        ("s3://nobody/lake", "there is no bucket nobody: make it first"),
        ("s3://bucket/lake?endpoint_override=127.0.0.1:9000&scheme=http", "AWS_ENDPOINT_URL"),
        ("s3://key:secret@bucket/lake", "AWS credentials"),
        ("ftp://bucket/lake", "no filesystem of that name"),
    ],
)
def test_a_lake_that_cannot_be_is_refused(lake: str, said: str, bucket: Bucket) -> None:
    check_lake("s3://bucket/anything")
    with pytest.raises(InputError, match=said):
        check_lake(lake)


def test_a_server_that_is_not_there_is_told_in_one_line(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"^lake=s3://bucket/lake: cannot be reached \(.*\)$"):
        check_lake("s3://bucket/lake")


def test_tracking_needs_a_place_of_its_own(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lake = Lake("s3://bucket/lake")
    with pytest.raises(InputError, match=r"mlflow\.uri=null: .*MLFLOW_TRACKING_URI"):
        store_of({"uri": None}, lake)
    assert store_of({"uri": "http://tracking:5000"}, lake) == "http://tracking:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://named:5000")
    assert store_of({"uri": None}, lake) == "http://named:5000"
    assert store_of({"uri": None}, Lake(str(tmp_path))) == f"sqlite:///{tmp_path}/mlflow.db"
