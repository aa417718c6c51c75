"""MLflow: experiment -> run -> round -> stage as nested runs by explicit parent id."""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from tables import Files, InputError, Lake
from trainers.app import check_writable

if TYPE_CHECKING:
    from trainers.notes import Note


def open_tracker(mlflow: Mapping[str, Any], lake: Lake, run: str, goes_on: bool = True) -> Tracker:
    """The tracker of a run: in the store that `store_of` names.

    Args:
        goes_on: the run of that name in the lake is continued; False: it is a new one.
    """
    uri = store_of(mlflow, lake)
    # Beside a SQLite file; a server knows a place of its own.
    artifacts = f"{os.path.dirname(_sqlite_file(uri))}/mlartifacts" if _sqlite_file(uri) else None
    record = (lake.files, f"runs/{run}/mlflow.json") if goes_on else None
    return Tracker(uri, artifacts, mlflow["experiment"], run, record, own=not mlflow["uri"])


def store_of(mlflow: Mapping[str, Any], lake: Lake) -> str:
    """Tracking URI: `mlflow.uri`, else a SQLite file in a local lake, else what `MLFLOW_TRACKING_URI` names.

    Raises:
        InputError: none of them; a lake in an object store cannot hold a SQLite file, nor one whose path is no address.
    """
    if mlflow["uri"]:
        return str(mlflow["uri"])
    if lake.files.is_local:
        if re.search(r"%[0-9A-Fa-f]{2}|\?", lake.uri):  # of `a%20b` MLflow makes `a b`
            raise InputError("lake", lake.uri, "MLflow reads `?` and `%20` as parts of an address: rename the folder")
        return f"sqlite:///{lake.uri}/mlflow.db"
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    fix = f"lake {lake.uri} is no local folder: name a tracking server, also by MLFLOW_TRACKING_URI, or sqlite:///file"
    raise InputError("mlflow.uri", "null", fix)


def _sqlite_file(uri: str) -> str:
    """Absolute path of the SQLite file that a tracking URI names; empty if it names none."""
    path = uri.partition("///")[2].split("?")[0]
    return os.path.abspath(path) if uri.startswith("sqlite") and path else ""


def _elsewhere(location: str, artifacts: str | None) -> str:
    """The lake that an experiment of ours was made in, if that was moved or copied since; else empty.

    MLflow keeps one place for an experiment's artifacts for good: it would go on to write into the old lake.
    """
    lake, found, name = location.rpartition("/mlartifacts")
    return lake if found and not name and artifacts and not _same(location, artifacts) else ""


def _same(one: str, other: str) -> bool:
    """Whether two paths, or two URIs of SQLite files, are one place."""
    return os.path.realpath(_sqlite_file(one) or one) == os.path.realpath(_sqlite_file(other) or other)


def _experiment(client: Any, name: str, artifacts: str | None, own: bool) -> str:
    """Id of the experiment; in a lake's own store, one that was begun where the lake lay before goes by that place."""
    found = client.get_experiment_by_name(name)
    if found is not None and own and artifacts and (where := _elsewhere(found.artifact_location, artifacts)):
        aside = f"{name} of {where}"
        while client.get_experiment_by_name(aside) is not None:
            aside += " (2)"
        client.rename_experiment(found.experiment_id, aside)
        found = client.get_experiment_by_name(f"{name} of {os.path.dirname(artifacts)}")  # the lake is back here
        if found is not None:
            client.rename_experiment(found.experiment_id, name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifacts)
    return found.experiment_id


def check_store(uri: str) -> None:
    """Refuse in a moment a store that MLflow would try for minutes: a SQLite file or a server that is not there.

    Raises:
        InputError: with the reason that the system gave.
    """
    scheme = uri.split(":")[0]
    if _sqlite_file(uri):
        check_writable("mlflow.uri", uri, os.path.dirname(_sqlite_file(uri)))
    if scheme not in ("http", "https") or scheme in getproxies():
        return
    try:
        server = urlsplit(uri)
        port = server.port or {"http": 80, "https": 443}[scheme]
        socket.create_connection((server.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:
        raise InputError("mlflow.uri", uri, f"no tracking server answers ({error})") from None


class Tracker:
    """One run of the loop in MLflow, continued where it was when the loop is run again.

    As a context manager it ends all runs that are still open as FAILED when an exception leaves it.

    Args:
        uri: tracking URI; null in the config means `sqlite:///<lake>/mlflow.db`.
        experiment, run: their names.
        record: where the MLflow ids of this run are kept, so that a continued loop finds its runs; None: nowhere.
        own: the store is the lake's and holds nothing else.

    Raises:
        InputError: the store cannot be opened.
    """

    def __init__(
        self,
        uri: str,
        artifacts: str | None,
        experiment: str,
        run: str,
        record: tuple[Files, str] | None,
        own: bool = False,
    ) -> None:
        check_store(uri)
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seconds, not minutes, once a server is gone
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.record = record
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        known = (record and record[0].read_json(record[1])) or {}
        try:
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment = _experiment(self.client, experiment, artifacts, own)
        except MlflowException as error:
            raise InputError("mlflow.uri", uri, f"cannot open the tracking store ({error})") from error
        # A lake that was copied has the ids of the original's runs.
        here = record is not None and _same(known.get("lake", record[0].uri), record[0].uri)
        self.ids: dict[str, str] = known["runs"] if here and _same(known.get("uri", ""), uri) else {}
        self.uri = uri
        self.root = self.open("", run, None)

    def __enter__(self) -> Tracker:
        for run in self.ids.values():  # of a loop that failed and now goes on
            if self.client.get_run(run).info.status == "FAILED":
                self.client.update_run(run, status="RUNNING")
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from mlflow.exceptions import MlflowException

        if error is None:
            return
        with suppress(MlflowException, OSError):  # the store may be what failed
            for run in self.ids.values():
                if self.client.get_run(run).info.status == "RUNNING":
                    self.client.set_terminated(run, status="FAILED")

    def open(self, key: str, name: str, parent: str | None) -> str:
        """The MLflow run id of `key`, created below `parent` the first time."""
        if key not in self.ids:
            tags = {"mlflow.parentRunId": parent} if parent else {}
            run = self.client.create_run(self.experiment, run_name=name, tags=tags)
            self.ids[key] = run.info.run_id
            if self.record:
                self.record[0].write_json(
                    self.record[1], {"uri": self.uri, "lake": self.record[0].uri, "runs": self.ids}
                )
        return self.ids[key]

    def stage(
        self,
        round: int | None,
        name: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float | None],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Write one finished stage below its round (or below the run, where `round` is None); once only."""
        run = self._below(round, name)
        if self.client.get_run(run).info.status == "FINISHED":
            return
        for k, v in params.items():
            if v is not None:
                self.client.set_tag(run, k, str(v))
        self.metrics(run, metrics, round or 0)
        for file, text in (texts or {}).items():
            self.client.log_text(run, text, file)
        self.client.set_terminated(run)

    def watch(self, round: int | None, name: str) -> Callable[[Note], None]:
        """A function that writes a training's notes into the run that `stage` finishes, while it trains.

        Losses are metrics `loss` and `loss_<term>` by optimizer step, pictures are the image `overlay` by step. A store
        that takes no more of them is said once: the training goes on without.
        """
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        gone = False

        def write(note: Note) -> None:
            nonlocal gone
            if gone:
                return
            try:
                put(note)
            except (MlflowException, OSError) as error:
                gone = True
                reason = str(error).splitlines()[0]
                logging.getLogger(__name__).warning("%s: not followed any more in %s: %s", name, self.uri, reason)

        def put(note: Note) -> None:
            run, now = self._below(round, name), int(time.time() * 1000)
            values = {"loss": note.loss} | {f"loss_{term}": value for term, value in note.terms.items()}
            self.client.log_batch(run, metrics=[Metric(k, v, now, note.step) for k, v in values.items()])
            if note.picture is not None:
                self.client.log_image(run, note.picture, key="overlay", step=note.step)

        return write

    def _below(self, round: int | None, name: str) -> str:
        """The MLflow run of a stage, below its round's or below the root."""
        parent, prefix = self.root, ""
        if round is not None:
            prefix = f"round {round}"
            parent = self.open(prefix, prefix, self.root)
        return self.open(f"{prefix}/{name}", name, parent)

    def metrics(self, run: str, values: Mapping[str, float | None], step: int) -> None:
        """Log the finite values with the round as step."""
        for key, value in values.items():
            if value is not None:
                self.client.log_metric(run, key, float(value), step=step)

    def attach(self, texts: Mapping[str, str]) -> None:
        """Attach artifacts (name -> text) to the run."""
        for name, text in texts.items():
            self.client.log_text(self.root, text, name)

    def close(self, texts: Mapping[str, str], tags: Mapping[str, Any] | None = None) -> None:
        """Attach artifacts and tags (those that are not None) to the run and end it and its rounds."""
        self.attach(texts)
        for name, value in (tags or {}).items():
            if value is not None:
                self.client.set_tag(self.root, name, str(value))
        for key, run in self.ids.items():
            if key.startswith("round ") and "/" not in key:
                self.client.set_terminated(run)
        self.client.set_terminated(self.root)


def scalars(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    """Metrics of splits (split -> name -> value) as `<split>_<name>`, without curves and tables."""
    return {f"{split}_{k}": v for split, m in metrics.items() for k, v in m.items() if not isinstance(v, dict)}
