"""A real MLflow with SQLite: one run a key, every row once, whatever is interrupted."""

import json
import logging
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dear_core import build
from dear_core.run import run
from dear_core.runs import RunFolder
from dear_core.tracking import MlflowTracker, SweepTracker, set_aside, ui_command


@pytest.fixture
def config(tiny_config):
    return build.resolve(tiny_config.replace({"model.branches": ["rgb:side4video"]}))


@pytest.fixture
def sweep(tmp_path):
    tracker = SweepTracker(f"sqlite:///{tmp_path}/mlflow.db", "dear", tmp_path)
    tracker.start("branches", "sweepkey", {"train.lr": 0.1})
    return tracker


def make(sweep):
    return lambda folder: MlflowTracker(sweep.uri, sweep.experiment_id, sweep.run_id, folder)


def children(sweep):
    query = f"tags.`mlflow.parentRunId` = '{sweep.run_id}'"
    return sweep.client.search_runs([sweep.experiment_id], query)


def test_a_run_has_its_parameters_metrics_artifacts_and_commit(sweep, config, tmp_path):
    result = run(config, tmp_path, make_tracker=make(sweep))
    (child,) = children(sweep)
    assert child.info.run_name == "RGB" and child.info.status == "FINISHED"
    assert set(child.data.params) == set(config.flat())
    assert child.data.params["model.branches"] == "rgb:side4video"
    assert len(child.data.tags["mlflow.source.git.commit"]) == 40
    history = sweep.client.get_metric_history(child.info.run_id, "validation/top1")
    assert [metric.step for metric in history] == [1, 2] and history[-1].value == result["top1"]
    assert child.data.metrics["trainable_parameters"] == result["trainable_parameters"]
    assert {file.path for file in sweep.client.list_artifacts(child.info.run_id)} == {
        "config.yaml",
        "per_class.json",
    }


def test_a_continued_run_goes_on_in_the_same_mlflow_run(sweep, config, tmp_path):
    config = config.replace({"train.epochs": 3})

    def interrupt(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path, make_tracker=make(sweep), on_epoch=interrupt)
    assert children(sweep)[0].info.status == "FAILED"
    run(config, tmp_path, make_tracker=make(sweep))
    (child,) = children(sweep)
    assert child.info.status == "FINISHED"
    steps = [m.step for m in sweep.client.get_metric_history(child.info.run_id, "train/loss")]
    assert steps == [1, 2, 3]


def test_a_row_that_is_sent_again_is_stored_once(sweep, config, tmp_path):
    run(config, tmp_path, make_tracker=make(sweep))
    folder = RunFolder(tmp_path, config.key)
    (folder.path / "mlflow.json").unlink()
    tracker = make(sweep)(folder)
    tracker.start(config)
    tracker.rows()
    (child,) = children(sweep)
    assert len(sweep.client.get_metric_history(child.info.run_id, "train/loss")) == 2


def test_clips_that_were_left_out_are_named_while_the_run_goes_on_and_when_it_fails(sweep, config, tmp_path):
    folder = RunFolder(tmp_path, config.key)
    folder.create(config)
    tracker = make(sweep)(folder)
    tracker.start(config)
    tracker.rows()
    (child,) = children(sweep)

    def named():
        files = {file.path for file in sweep.client.list_artifacts(child.info.run_id)}
        if "bad_clips.jsonl" not in files:
            return []
        text = Path(sweep.client.download_artifacts(child.info.run_id, "bad_clips.jsonl")).read_text()
        return [json.loads(line)["reason"] for line in text.splitlines()]

    assert named() == []
    folder.add_bad("train", [(3, "a.webm: truncated")])
    tracker.rows()
    assert named() == ["a.webm: truncated"]
    folder.add_bad("train", [(3, "a.webm: truncated"), (8, "b.webm: truncated")])
    tracker.fail("too many")
    assert named() == ["a.webm: truncated", "b.webm: truncated"]


def test_a_sweep_is_found_again_and_a_set_aside_run_is_not(sweep, config, tmp_path):
    again = SweepTracker(sweep.uri, "dear", tmp_path)
    assert again.start("branches", "sweepkey", {}) == sweep.run_id
    run(config, tmp_path, make_tracker=make(sweep))
    set_aside(sweep.uri, "dear", config.key)
    RunFolder(tmp_path, config.key).set_aside()
    run(config, tmp_path, make_tracker=make(sweep))
    assert len(children(sweep)) == 2


def test_a_server_that_does_not_answer_costs_a_warning(config, tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with caplog.at_level(logging.WARNING):
        result = run(
            config,
            tmp_path,
            make_tracker=lambda folder: MlflowTracker("http://127.0.0.1:9", "1", None, folder),
        )
    assert result["clips"] == 10
    assert "MLflow could not start the run" in caplog.text and "metrics.jsonl" in caplog.text
    assert len(RunFolder(tmp_path, config.key).history()) == 2


def test_what_a_server_missed_is_sent_with_the_next_row(sweep, config, tmp_path, monkeypatch):
    tracker_of = make(sweep)
    real = MlflowClient.log_batch
    calls = []

    def flaky(self, *args, **kwargs):
        from mlflow.exceptions import MlflowException

        if kwargs.get("metrics"):
            calls.append(1)
            if len(calls) == 1:
                raise MlflowException("gone for a moment")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    run(config, tmp_path, make_tracker=tracker_of)
    (child,) = children(sweep)
    assert [m.step for m in sweep.client.get_metric_history(child.info.run_id, "train/loss")] == [1, 2]


def test_the_uis_line_fits_the_store():
    assert ui_command("http://host:5000") == "open http://host:5000"
    assert "--backend-store-uri sqlite:////x/mlflow.db --host 127.0.0.1" in ui_command(
        "sqlite:////x/mlflow.db"
    )
