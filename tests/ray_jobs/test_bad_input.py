"""Bad input ends before any trial starts: one sentence that says what, where and what would be right.

Each case runs the real command as a user does, and looks at its exit code and all that it printed.
"""

import json
import shutil

import pytest

from dear_core.config import DataConfig
from dear_core.data import formats

SWEEP = '''"""One arm."""
from dear_core.presets import demo as base
METRIC, MODE = "validation/top1", "max"
def space(trial):
    return {{"model.branches": {branches}}}
'''


@pytest.fixture
def broken(tiny_root, tmp_path):
    """A copy of the tiny data set that a test may spoil."""
    root = tmp_path / "broken"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("frames"))
    return root


@pytest.fixture
def refuse(run_command, tiny_root, tmp_path):
    """Run the sweep, expect a refusal, and return its sentence."""

    def run(*settings, arguments=(), root=tiny_root):
        settings = (f"data.root={root}", "data.cache_dir=null", "train.epochs=1", *settings)
        done = run_command("ray_jobs/sweep.py", "--set", *settings, *arguments)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        assert not list(tmp_path.glob("results/runs/*/last.pt"))
        return lines[0]

    return run


def test_a_misspelt_key(refuse):
    assert refuse("train.epoch=3") == "error: train.epoch: no such key; did you mean train.epochs?"


def test_a_value_of_the_wrong_type(refuse):
    assert "train.lr: input should be a valid number" in refuse("train.lr=fast")


def test_an_unknown_preset(refuse):
    sentence = refuse(arguments=("--preset", "ssv2_vitb61"))
    assert "ssv2_vitb61" in sentence and "ssv2_vitb16" in sentence


@pytest.mark.slow
def test_a_missing_weights_file(refuse, tmp_path):
    sentence = refuse(f"model.videomamba.pretrained={tmp_path}/mamba.pth")
    assert f"model.videomamba.pretrained: {tmp_path}/mamba.pth: no such file" in sentence


@pytest.mark.slow
def test_a_missing_data_folder(refuse, tmp_path):
    sentence = refuse(root=tmp_path / "nowhere")
    assert f"data.root: {tmp_path}/nowhere is no folder; it should hold labels.json" in sentence


@pytest.mark.slow
def test_an_annotation_that_names_a_missing_video(refuse, broken):
    entries = json.loads((broken / "validation.json").read_text())
    (broken / "videos" / f"{entries[0]['id']}.webm").unlink()
    sentence = refuse(root=broken)
    gone = f"{entries[0]['id']}.webm, named by the annotations of {broken}, not found in {broken}/videos"
    assert gone in sentence


@pytest.mark.slow
def test_an_unwritable_output_folder(refuse, tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    sentence = refuse(arguments=("--results", tmp_path / "taken" / "results"))
    assert "taken/results: results cannot be written there" in sentence and "--results" in sentence


@pytest.mark.slow
def test_a_branch_list_without_a_stream(refuse, tmp_path):
    sweep = tmp_path / "nothing.py"
    sweep.write_text(SWEEP.format(branches=[]))
    sentence = refuse(arguments=("--sweep", sweep))
    assert "model.branches: no branch, so no stream gives scores; name at least rgb:side4video" in sentence


@pytest.mark.slow
def test_sizes_that_do_not_fit_name_the_arm(refuse):
    sentence = refuse("model.fusion.heads=3")
    assert "model: " in sentence and "heads" in sentence and "(arm RGB+Depth(VideoMamba))" in sentence


def test_an_unknown_sweep_and_an_unknown_data_form(refuse):
    assert "no such sweep; known are branches" in refuse(arguments=("--sweep", "brunches"))
    assert "data.format: input should be 'ssv2', 'list', 'csv' or 'epic' (got 'kinetics')" in refuse(
        "data.format=kinetics"
    )


@pytest.mark.slow
def test_a_tracking_server_that_is_not_there(run_command, tiny_root):
    done = run_command(
        "ray_jobs/sweep.py",
        *("--set", f"data.root={tiny_root}", "data.cache_dir=null"),
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        MLFLOW_HTTP_REQUEST_MAX_RETRIES="0",
    )
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "MLFLOW_TRACKING_URI http://127.0.0.1:9: no MLflow server" in line


@pytest.mark.slow
@pytest.mark.parametrize("cached", [True, False], ids=["from the cache", "from the file"])
def test_a_truncated_video_is_named_when_it_is_read(run_command, broken, tmp_path, cached):
    video = formats.read(DataConfig(root=str(broken))).splits["train"][4].path
    video.write_bytes(video.read_bytes()[:9000])
    cache = f"data.cache_dir={tmp_path / 'frames' if cached else 'null'}"
    sweep = tmp_path / "one_arm.py"
    sweep.write_text(SWEEP.format(branches=["rgb:side4video"]))
    settings = (f"data.root={broken}", cache, "train.epochs=1", "train.batch_size=4")
    done = run_command("ray_jobs/sweep.py", "--sweep", sweep, "--set", *settings)
    assert done.returncode == 2, done.stdout + done.stderr
    everything = done.stdout + done.stderr
    assert "Traceback" not in everything
    lines = {line for line in everything.splitlines() if line.startswith("error: ")}
    assert len(lines) == 1, everything
    (line,) = lines
    assert any(f"{video}: {word}" in line for word in ("truncated", "not readable", "damaged"))
    assert (
        "1 of the 20 clips of the train split cannot be read, more than data.max_bad_fraction 0.001" in line
    )


@pytest.mark.slow
def test_a_checkpoint_that_is_none(run_command, tmp_path):
    done = run_command("-m", "dear_core.eval", "--checkpoint", tmp_path / "gone.pt")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: {tmp_path}/gone.pt: no such checkpoint; RESULTS/runs/KEY/last.pt is one\n"


def test_a_misspelt_option(run_command):
    done = run_command("ray_jobs/sweep.py", "--workers-per-trail", "2")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--workers-per-trial" in done.stderr
