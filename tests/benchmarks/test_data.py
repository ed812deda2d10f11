"""The benchmark of reading runs to its end on short clips and measures every row; speed is not asked for."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from benchmarks import _data_reference as reference
from dear_core.data.scene import render_clip


def test_the_reference_is_a_normalised_clip_with_one_draw_for_all_frames():
    frame = render_clip(0, 0, 0)[0][0]
    for seed in range(8):
        random.seed(seed), np.random.seed(seed)
        clip_KHW = reference.transformed([Image.fromarray(frame)] * 8)
        assert clip_KHW.shape == (24, 224, 224) and abs(clip_KHW.mean()) < 3
        assert (clip_KHW.view(8, 3, 224, 224) == clip_KHW[:3]).all()  # equal frames stay equal


@pytest.mark.slow
def test_every_row_is_measured(run_command, tmp_path):
    done = run_command("benchmarks/data.py", "--quick", "--json", tmp_path / "rows.json", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads((tmp_path / "rows.json").read_text())
    assert {"reference", "RGB", "RGB and depth", "short, mpeg4 8", "long, mpeg4 8"} <= measured["ways"].keys()
    for name, way in measured["ways"].items():
        assert way["ms"] > 0, name
        assert way["parts"].keys() > {"collating", "the rest"}
    assert all(ratio > 0 for ratios in measured["ratios"].values() for ratio in ratios)
    for name, one in measured["copies"].items():
        assert one["size"] > 0 and min(one["psnr"]) > 30, name
    tables = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(tables) == 2 * 7 + 2 * 9 + 14 + 10
