"""Every line of the log says the run, the stage and the unit it belongs to, also where an actor said it."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import urlopen

import pyarrow as pa
import pytest

from pipelines.stage import run_stage
from tables import Dataset, InputError, Lake, schema
from trainers import logs, meters
from trainers.app import Exit
from trainers.notes import Note

ROOT = Path(__file__).resolve().parents[1]


class Talker:
    """Worker that says something of each unit, and raises at one."""

    def __init__(self, output: Dataset) -> None:
        self.output, self.log = output, logging.getLogger("pipelines.talker")

    def __call__(self, part: str, payload: Any) -> Mapping[str, int]:
        self.log.warning("the host is slow: %s", payload)
        logging.getLogger("a.library").info("nobody asked")
        if payload == "poison":
            raise ValueError("no photo")
        row = {"model": payload, "model_id": part, "split": "test"}
        self.output.write(part, pa.Table.from_pylist([row], schema("metrics")), schema("metrics"))
        return {"rows": 1}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.ray
def test_a_stage_logs_what_its_actors_say(
    tmp_path: Path, ray_local: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    output = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 1})
    units = {"u0": "well", "u1": "poison"}
    folder = logs.log_folder("selftrain", "r1", str(tmp_path))
    with (
        logs.logging_to("file", "selftrain", "r1", folder),
        pytest.raises(RuntimeError, match="1 of 2 units were lost"),
    ):
        run_stage(output, units, Talker, {"output": output}, ray_local, "a")
    lines = lines_of(tmp_path / "runs" / "r1" / "log.jsonl")
    stage = f"metrics/{output.fingerprint}"
    assert {(x["run"], x["command"], x["stage"]) for x in lines} == {("r1", "selftrain", stage)}
    said = {(x["unit"], x["level"], x["message"]) for x in lines}
    assert said == {
        (None, "info", "stage begins"), (None, "info", "stage ended"),
        ("u0", "warning", "the host is slow: well"), ("u0", "info", "unit ended"),
        ("u1", "warning", "the host is slow: poison"), ("u1", "error", "unit lost: ValueError: no photo"),
        ("u1", "info", "unit ended"),
    }  # fmt: skip
    done = next(x for x in lines if x["unit"] == "u0" and x["message"] == "unit ended")
    assert done["rows"] == 1
    lost = next(x for x in lines if x["level"] == "error")
    assert "Talker" not in lost["message"]
    assert "Traceback" in lost["traceback"]
    shown = capsys.readouterr().err
    assert f"warning: {stage} u0: the host is slow: well\n" in shown
    assert "Traceback" not in shown


def test_json_goes_to_the_error_stream_and_text_is_warnings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("pipelines.some")
    with logs.logging_to("json", "crawl", None, None), logs.within(stage="photos/1", unit="s00"):
        logs.event(log, "ended", ok=3)
        logging.getLogger("other").info("not ours")
    line = json.loads(capsys.readouterr().err)
    assert {k: line[k] for k in ("run", "command", "stage", "unit", "message", "level", "ok")} == {
        "run": "crawl", "command": "crawl", "stage": "photos/1", "unit": "s00", "message": "ended", "level": "info",
        "ok": 3,
    }  # fmt: skip
    with logs.logging_to("text", "crawl", None, None):
        logs.event(log, "ended", ok=3)
        logs.event(log, "odd", logging.WARNING, host="a")
    assert capsys.readouterr().err == "warning: odd host=a\n"
    assert not logs.ids()


def test_what_does_not_fit_costs_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own raises what ours must not
    with logs.logging_to("json", "crawl", None, None):
        logging.getLogger("third.party").warning("value %d", "a")
        logs.event(logging.getLogger("pipelines.x"), "odd", value=float("nan"), time="mine", rate=2.0)
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [(line["message"], line["value"], line["rate"]) for line in said] == [("odd", None, 2.0)]
    assert said[0]["time"] != "mine"


def test_where_the_file_lies(tmp_path: Path) -> None:
    lake = str(tmp_path)
    assert logs.log_folder("selftrain", "deer", f"file://{lake}") == f"{lake}/runs/deer"
    assert logs.log_folder("selftrain", "../x", lake) == f"{lake}/logs/selftrain"  # refused, and not made a run
    assert logs.log_folder("report", "deer", lake) == f"{lake}/logs/report"
    assert logs.log_folder("crawl", None, "s3://bucket/lake") is None
    with pytest.raises(InputError, match=r"^log=file"), logs.logging_to("file", "crawl", None, None):
        pass


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments]


@pytest.mark.parametrize(
    "arguments",
    [["crawl", "nope=1"], ["crawl", "log=xml"], ["nope"], ["crawl", "lake=${nope}"], ["export", "log=file"]],
)
def test_what_is_refused_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        command(*arguments), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == Exit.REFUSED, done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED)])
def test_an_interrupt_is_one_line_and_a_code_of_its_own(sign: int, code: int, tmp_path: Path) -> None:
    script = (
        "import sys, time, signal\nfrom trainers.app import command\n"
        "sys.argv = ['x', 'lake=lake', 'log=json']\n"
        "signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))\n"  # as ray.init does
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell's background jobs ignore
        "@command('report')\ndef main(cfg):\n    print('there', flush=True)\n    time.sleep(60)\n"
        "main()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "there\n"
    run.send_signal(sign)
    _, said = run.communicate()
    assert run.returncode == code, said
    *events, last = said.splitlines()
    assert last.endswith("the same command goes on where it was")
    assert [json.loads(e)["message"] for e in events] == ["command begins", "ended early"]


@pytest.mark.ray
def test_prometheus_scrapes_what_a_stage_did(tmp_path: Path, ray_local: SimpleNamespace) -> None:
    """The endpoint of this Ray's own metrics agent, asked as Prometheus asks it."""
    pytest.importorskip("opencensus", reason="Ray's metrics agent is not installed: pip install 'wildshape[metrics]'")
    import ray
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    output = Lake(str(tmp_path)).dataset("metrics", "deer", {"n": 2})
    lossy = SimpleNamespace(**{**vars(ray_local), "failure_budget": 0.5})
    with logs.logging_to("text", "selftrain", "scraped", None):
        run_stage(output, {"u0": "well", "u1": "poison", "u2": "well"}, Talker, {"output": output}, lossy, "a")
        meters.training("acsm")(Note(7, 10, 0.25, {}, None))
    (node,) = ray.nodes()
    url, tags = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics", 'run="scraped"'
    wanted = {
        ("ray_wildshape_units_total", "done"): 2, ("ray_wildshape_units_total", "lost"): 1,
        ("ray_wildshape_items_total", "rows"): 2, ("ray_wildshape_units_left", "metrics"): 0,
        ("ray_wildshape_train_step", "acsm"): 7, ("ray_wildshape_train_loss", "acsm"): 0.25,
    }  # fmt: skip
    found: dict[tuple[str, str], float] = {}
    for _ in range(120):  # Ray reports every ten seconds
        text = urlopen(url, timeout=60).read().decode()
        mine = [line for line in text.splitlines() if tags in line]
        found = {key: float(line.split()[-1]) for key in wanted for line in mine if line.startswith(f"{key[0]}{{")
                 and f'"{key[1]}"' in line}  # fmt: skip
        if found == wanted:
            break
        time.sleep(1)
    assert found == wanted
