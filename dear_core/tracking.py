"""Where a run's figures go besides its own folder: MLflow, or nowhere.

The folder's ``metrics.jsonl`` is the truth; MLflow is told of it. One MLflow run belongs to one run key, and
is found again by it, so a continued run goes on in the same MLflow run. Rows keep their own time stamps:
MLflow stores a metric of the same run, step and time once, so a row that is sent again is not doubled. A
server that does not answer costs a warning, not the run; what it missed is sent with the next row.

The only file here that may import mlflow, and it does so when a tracker is made.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dear_core.config import RunConfig
from dear_core.errors import InputError
from dear_core.runs import RunFolder, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

KEY_TAG, SWEEP_TAG = "dear.key", "dear.sweep"


class Tracker(Protocol):
    """What a run tells of itself while it trains."""

    def start(self, config: RunConfig) -> None: ...
    def rows(self) -> None: ...
    def finish(self, result: Mapping[str, Any]) -> None: ...
    def fail(self, message: str) -> None: ...


class NoTracker:
    """Keeps figures in the run's folder alone."""

    def start(self, config: RunConfig) -> None:
        pass

    def rows(self) -> None:
        pass

    def finish(self, result: Mapping[str, Any]) -> None:
        pass

    def fail(self, message: str) -> None:
        pass


def default_uri(results: Path) -> str:
    """``MLFLOW_TRACKING_URI`` where it is set, else a SQLite file among the results."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{results.absolute()}/mlflow.db"


def ui_command(uri: str) -> str:
    """The line that opens MLflow's UI on what was tracked."""
    if uri.startswith(("http://", "https://")):
        return f"open {uri}"
    return f"mlflow ui --backend-store-uri {uri} --host 127.0.0.1 --port 5000"


class SweepTracker:
    """The parent run of a sweep: one a sweep name and base, found again when the sweep is started again."""

    def __init__(self, uri: str, experiment: str, results: Path) -> None:
        """Raises ``InputError`` if nothing at ``uri`` keeps runs."""
        from mlflow.exceptions import MlflowException

        self.uri, self.experiment, self.results = uri, experiment, results
        self.run_id = ""
        try:
            self.client = _client(uri)
            self.experiment_id = self._experiment_id()
        except MlflowException:
            raise InputError(
                f"MLFLOW_TRACKING_URI {uri}: no MLflow server or database answers there; start it, or "
                "unset the variable to log to a SQLite file among the results"
            ) from None

    def start(self, name: str, key: str, params: Mapping[str, Any]) -> str:
        """Find or make the parent run; returns its ID."""
        self.run_id = _find(self.client, self.experiment_id, SWEEP_TAG, key) or ""
        if not self.run_id:
            tags = {SWEEP_TAG: key, "mlflow.runName": name, **_source_tags()}
            self.run_id = self.client.create_run(self.experiment_id, tags=tags).info.run_id
            _log_params(self.client, self.run_id, params)
        return self.run_id

    def finish(
        self, figures: Mapping[str, float], files: Mapping[str, str], plots: Mapping[str, Any], failed: bool
    ) -> None:
        """Log the sweep's figures, text files and matplotlib plots by name, and close the parent run."""
        from mlflow.exceptions import MlflowException

        try:
            for name, value in figures.items():
                self.client.log_metric(self.run_id, name, value)
            for name, text in files.items():
                self.client.log_text(self.run_id, text, name)
            for name, plot in plots.items():
                self.client.log_figure(self.run_id, plot, name)
            self.client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")
        except MlflowException as error:
            log.warning("MLflow could not finish the sweep (%s); its results are in %s", error, self.results)

    def _experiment_id(self) -> str:
        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            return found.experiment_id
        # A bare database has no server that keeps artifacts, so they go beside the results.
        database = not self.uri.startswith(("http://", "https://"))
        place = (self.results.absolute() / "mlflow-artifacts").as_uri() if database else None
        kind = {"mlflow.experimentKind": "custom_model_development"}  # the UI opens it as training runs
        return self.client.create_experiment(self.experiment, artifact_location=place, tags=kind)


class MlflowTracker:
    """One run's MLflow run, nested under a sweep's."""

    def __init__(self, uri: str, experiment_id: str, parent_run_id: str | None, folder: RunFolder) -> None:
        self.client, self.experiment_id = _client(uri), experiment_id
        self.parent_run_id, self.folder = parent_run_id, folder
        self.run_id = ""
        self._config: RunConfig | None = None
        self._sent_file = folder.path / "mlflow.json"
        self._bad_sent = 0

    def start(self, config: RunConfig) -> None:
        self._config = config
        self._tell("start the run", lambda: None)

    def rows(self) -> None:
        """Send every row of the folder that was not sent yet."""
        self._tell("log metrics", self._send_rows)
        self._tell("name bad clips", self._send_bad)

    def finish(self, result: Mapping[str, Any]) -> None:
        def send() -> None:
            self._send_rows()
            self._send_bad()
            for name in ("gflops", "parameters", "trainable_parameters"):
                self.client.log_metric(self.run_id, name, result[name])
            self.client.log_dict(self.run_id, result["per_class"], "per_class.json")
            self.client.set_tag(self.run_id, "dear.checkpoint", result["checkpoint"])
            self.client.set_terminated(self.run_id, "FINISHED")

        self._tell("finish the run", send)

    def fail(self, message: str) -> None:
        def send() -> None:
            self._send_bad()
            self.client.set_tag(self.run_id, "dear.error", message[:5000])
            self.client.set_terminated(self.run_id, "FAILED")

        self._tell("record the failure", send)

    def _open(self) -> None:
        """Find this run's MLflow run by its key, or make it with its parameters."""
        config = self._config
        assert config is not None, "start() comes first"
        self.run_id = _find(self.client, self.experiment_id, KEY_TAG, config.key) or ""
        if self.run_id:
            self.client.update_run(self.run_id, status="RUNNING")
            return
        tags = {KEY_TAG: config.key, "mlflow.runName": config.model.row, **_source_tags()}
        if self.parent_run_id:
            tags["mlflow.parentRunId"] = self.parent_run_id
        self.run_id = self.client.create_run(self.experiment_id, tags=tags).info.run_id
        _log_params(self.client, self.run_id, config.flat())
        self.client.log_text(self.run_id, (self.folder.path / "config.yaml").read_text(), "config.yaml")

    def _send_rows(self) -> None:
        history = self.folder.history()
        for row in history[self._sent() :]:
            self.client.log_batch(self.run_id, metrics=_metrics(row))
        write_text(self._sent_file, json.dumps({"run_id": self.run_id, "sent": len(history)}))

    def _send_bad(self) -> None:
        """The names of clips that could not be read, whenever there are more of them."""
        size = self.folder.bad.stat().st_size if self.folder.bad.is_file() else 0
        if size > self._bad_sent:
            self.client.log_artifact(self.run_id, str(self.folder.bad))
            self._bad_sent = size

    def _sent(self) -> int:
        """Rows already sent to this very MLflow run."""
        if not self._sent_file.is_file():
            return 0
        state = json.loads(self._sent_file.read_text())
        return state["sent"] if state["run_id"] == self.run_id else 0

    def _tell(self, what: str, send: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException

        try:
            if not self.run_id:
                self._open()
            send()
        except MlflowException as error:
            log.warning("MLflow could not %s (%s); the figures are in %s", what, error, self.folder.metrics)


def set_aside(uri: str, experiment: str, key: str) -> None:
    """Take a run's key from its MLflow run, so that a fresh start makes a new one. Nothing is deleted."""
    client = _client(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return
    for tag in (KEY_TAG, SWEEP_TAG):
        run_id = _find(client, found.experiment_id, tag, key)
        if run_id:
            client.set_tag(run_id, tag, f"{key} (set aside)")


def _client(uri: str) -> MlflowClient:
    # The command line's patience: by default seven retries make one call last minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow", "mlflow.store.db.utils"):  # after mlflow has set its own levels
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def _find(client: MlflowClient, experiment_id: str, tag: str, value: str) -> str | None:
    runs = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
    return runs[0].info.run_id if runs else None


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    entries = [Param(key, _text(value)) for key, value in params.items()]
    for start in range(0, len(entries), 100):  # MLflow's limit a request
        client.log_batch(run_id, params=entries[start : start + 100])


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _metrics(row: Mapping[str, Any]) -> list:
    from mlflow.entities import Metric

    skipped = ("epoch", "time")
    return [Metric(k, float(v), row["time"], row["epoch"]) for k, v in row.items() if k not in skipped]


def _source_tags() -> dict[str, str]:
    """The commit that is checked out where this code lies, if it lies in a git work tree."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = os.environ.get("DEAR_GIT_COMMIT", "")
    return {"mlflow.source.git.commit": commit} if commit else {}
