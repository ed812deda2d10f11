"""The check as a user runs it: what it names, that it goes on where it was, and its picture."""

import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def root(tiny_root, tmp_path):
    """A copy of the tiny data set that a test may spoil."""
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("frames"))
    return root


@pytest.fixture
def check(run_command, root, tmp_path):
    def run(*arguments):
        done = run_command(
            "-m", "dear_core.data", "check", "--data.root", root, "--out", tmp_path / "out", *arguments
        )
        assert "Traceback" not in done.stderr, done.stderr
        file = tmp_path / "out" / "report.json"
        return done, json.loads(file.read_text()) if file.is_file() else None

    return run


@pytest.mark.slow
def test_a_sound_data_set_is_counted_pictured_and_not_read_again(check, root, tmp_path):
    done, (train, validation) = check()
    assert done.returncode == 0, done.stderr
    assert (train["clips"], train["read"], validation["clips"], validation["read"]) == (20, 20, 10, 10)
    assert sum(train["classes"].values()) == 20 and len(train["classes"]) == 10
    assert train["clips_per_second"] > 0 and train["frames"] == 20 * 8 * 2  # RGB and depth
    picture = np.asarray(Image.open(tmp_path / "out" / "clips.png"))
    assert picture.shape[0] == 6 * (20 + 2 * 124 + 4) and picture.std() > 20
    done, (train,) = check("--splits", "train")
    assert train["read"] == 0 and "read before" in done.stdout
    ledger = tmp_path / "out" / "clips.jsonl"
    ledger.write_text("\n".join(ledger.read_text().splitlines()[:25]) + '\n{"clip": "cut o')  # stopped there
    _, (train, validation) = check()
    assert (train["read"], validation["read"]) == (0, 5)
    _, (train, validation) = check()  # the line that was cut off costs itself alone
    assert (train["read"], validation["read"]) == (0, 0)
    video = root / "videos" / f"{json.loads((root / 'train.json').read_text())[3]['id']}.webm"
    shutil.copy(video, video.with_suffix(".copy"))
    time.sleep(0.01)
    video.with_suffix(".copy").replace(video)  # the same bytes at another time: read again
    _, (train,) = check("--splits", "train")
    assert train["read"] == 1


@pytest.mark.slow
def test_every_kind_of_bad_clip_is_named(check, root):
    ids = [entry["id"] for entry in json.loads((root / "train.json").read_text())]
    missing, broken, without_depth = ids[0], ids[5], ids[7]
    (root / "videos" / f"{missing}.webm").unlink()
    video = root / "videos" / f"{broken}.webm"
    video.write_bytes(video.read_bytes()[:4000])
    (root / "depth" / f"{without_depth}.webm").unlink()
    done, (train,) = check("--splits", "train", "--data.num-frames", "100")
    assert done.returncode == 1
    for kind, name in (("missing", missing), ("unreadable", broken), ("missing_depth", without_depth)):
        assert len(train[kind]) == 1 and train[kind][0].startswith(f"{name}: "), kind
    assert f"train, unreadable: {broken}: " in done.stdout and f"{broken}.webm" in done.stdout
    assert len(train["short"]) == 17 and "frames, a clip has 100" in train["short"][0]
    assert "train, too short: and 7 more" in done.stdout  # too short
    done, (train,) = check("--splits", "train", "--no-depth")
    assert not train["missing_depth"] and not train["short"] and done.returncode == 1


@pytest.mark.slow
def test_bad_words_are_one_sentence(check):
    done, _ = check("--splits", "nonsense")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --splits nonsense: the data set has train, validation"
