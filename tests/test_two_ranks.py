"""Two processes train what one trains, also where a clip of one of them cannot be read."""

import json
import shutil
import sys

import pytest
import yaml

from dear_core import build
from dear_core.run import run
from dear_core.runs import RunFolder

SCRIPT = """
import sys
from pathlib import Path
import torch, torch.distributed as dist, yaml
from dear_core.config import load
from dear_core.run import run
torch.set_num_threads(1)
dist.init_process_group("gloo")
run(load(yaml.safe_load(Path(sys.argv[1]).read_text())), Path(sys.argv[2]))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_step_with_a_bad_clip_is_the_same_on_two_workers(tiny_config, tiny_root, run_command, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(tiny_root, root, ignore=shutil.ignore_patterns("frames"))
    for number in (4, 9, 11):
        video = root / "videos" / f"{json.loads((root / 'train.json').read_text())[number]['id']}.webm"
        video.write_bytes(video.read_bytes()[:4000])
    changes = {
        "data.root": str(root), "data.cache_dir": None, "data.max_bad_fraction": 0.5, "train.batch_size": 10,
        "model.branches": ["rgb:side4video"], "train.epochs": 2,
    }  # fmt: skip
    config = build.resolve(tiny_config.replace(changes))
    run(config, tmp_path / "one")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (tmp_path / "train.py").write_text(SCRIPT)
    done = run_command(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(tmp_path / "train.py", tmp_path / "config.yaml", tmp_path / "two"),
        PYTHONPATH=":".join(sys.path),
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    one, two = (RunFolder(tmp_path / name, config.key) for name in ("one", "two"))
    assert len(one.bad_clips()) == 3
    key = "{split} {clip}".format_map
    assert sorted(map(key, two.bad_clips())) == sorted(map(key, one.bad_clips()))
    for a, b in zip(one.history(), two.history(), strict=True):
        assert a["bad_clips"] == b["bad_clips"] == 3
        assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4)
        assert b["validation/loss"] == pytest.approx(a["validation/loss"], rel=1e-3)
