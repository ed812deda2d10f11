"""The main job, for real: Ray Tune with Optuna trains every arm; a second time does nothing."""

import json
import re
import shlex
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROWS = ["RGB", "RGB+Depth(VideoMamba)", "RGB+Depth", "RGB+Depth+Depth(VideoMamba)"]
ONE_ARM = '''"""One arm, to compare ways of training it."""
from dear_core.presets import demo as base
METRIC, MODE = "validation/top1", "max"
def space(trial):
    trial.suggest_categorical("row", ["RGB+Depth(VideoMamba)"])
    return {"model.branches": ["rgb:side4video", "depth:videomamba"]}
'''

pytestmark = pytest.mark.slow


def settings(root):
    return (
        "--set",
        f"data.root={root}",
        f"data.cache_dir={root}/frames",
        "train.epochs=2",
        "train.batch_size=8",
    )


def table_of(text):
    return [line for line in text.splitlines() if line.startswith("│ RGB") and line.count("│") == 7]


def mlflow_runs(home):
    client = MlflowClient(f"sqlite:///{home}/results/mlflow.db")
    experiment = client.get_experiment_by_name("dear")
    return client, client.search_runs([experiment.experiment_id])


def test_the_four_rows_from_nothing_and_again(run_command, tiny_root, tmp_path):
    first = run_command("ray_jobs/sweep.py", *settings(tiny_root))
    assert first.returncode == 0, first.stdout + first.stderr
    rows = table_of(first.stdout)
    assert [row.split("│")[1].strip() for row in rows] == ROWS
    client, runs = mlflow_runs(tmp_path)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.run_name == "branches" and sorted(r.info.run_name for r in nested) == sorted(ROWS)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "per_class.png",
        "results.json",
        "table.md",
    }
    for run in nested:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "validation/top1")]
        assert steps == [1, 2]

    second = run_command("ray_jobs/sweep.py", *settings(tiny_root))
    assert second.returncode == 0 and table_of(second.stdout) == rows
    assert "4 arms, 4 of them finished before." in second.stdout
    assert "The sweep took" not in second.stdout
    assert len(mlflow_runs(tmp_path)[1]) == len(runs)

    line = re.search(r"Evaluate it:\n  (.+)\n", first.stdout).group(1)
    python, *arguments = shlex.split(line)
    assert Path(python).exists()
    evaluated = run_command(*arguments, "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    scores = json.loads(evaluated.stdout)
    assert {name: scores[name] for name in ("loss", "top1", "top5")} == scores["recorded"]


def test_two_workers_train_what_one_trains(run_command, tiny_root, tmp_path):
    (tmp_path / "one_arm.py").write_text(ONE_ARM)
    figures = {}
    for workers in (1, 2):
        results = tmp_path / f"with-{workers}"
        done = run_command(
            "ray_jobs/sweep.py",
            *("--sweep", tmp_path / "one_arm.py", "--workers-per-trial", workers, "--results", results),
            *settings(tiny_root),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = (path.parent for path in results.glob("runs/*/result.json"))
        history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["epoch"] for row in history] == [1, 2]
        figures[workers] = (folder.name, history)
    assert figures[1][0] == figures[2][0]  # the same run: its key does not know of workers
    for one, two in zip(figures[1][1], figures[2][1], strict=True):
        # Statistics of batch norm are summed over workers, so only the order of float sums differs.
        assert two["train/loss"] == pytest.approx(one["train/loss"], rel=1e-4)
        assert two["validation/loss"] == pytest.approx(one["validation/loss"], rel=1e-3)


def test_a_trial_that_fails_is_told_and_the_others_go_on(run_command, tiny_root, tmp_path):
    (tmp_path / "diverging.py").write_text(
        '"""Too fast?"""\nfrom dear_core.presets import demo as base\n'
        'METRIC, MODE = "validation/top1", "max"\n'
        "def space(trial):\n"
        '    lr = trial.suggest_categorical("lr", [1e-3, 1e30])\n'
        '    return {"model.branches": ["rgb:side4video"], "train.lr": lr, "train.clip_grad_norm": None}\n'
    )
    done = run_command("ray_jobs/sweep.py", "--sweep", tmp_path / "diverging.py", *settings(tiny_root))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: 1e+30: NotFiniteError: loss is not finite at step" in done.stdout
    assert "failed" in done.stdout and "Best checkpoint (0.001)" in done.stdout
    _, runs = mlflow_runs(tmp_path)
    assert sorted(run.info.status for run in runs) == ["FAILED", "FAILED", "FINISHED"]
    (failed,) = [run for run in runs if "dear.error" in run.data.tags]
    assert "NotFiniteError" in failed.data.tags["dear.error"]
