"""Shared parts of the tests: one tiny real data set, and configs that train on it in seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dear_core import presets
from dear_core.data import synthetic

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """Twenty training and ten validation clips of the demo's generator; tests must not change it."""
    root = tmp_path_factory.mktemp("tiny") / "data"
    synthetic.generate(root, train=20, validation=10, seed=7, progress=False)
    return root


@pytest.fixture
def tiny_config(tiny_root, tmp_path_factory):
    """The demo's model on the tiny data set: two epochs of two steps."""
    return presets.demo().replace(
        {
            "data.root": str(tiny_root),
            "data.cache_dir": str(tiny_root / "frames"),
            "train.epochs": 2,
            "train.batch_size": 8,
            "train.eval_batch_size": 4,
        }
    )


@pytest.fixture
def run_command(tmp_path):
    """Run one of the project's commands as a user does; returns the finished process."""

    def run(*arguments, timeout=600, cwd=None, **environment):
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("MLFLOW", "RAY_", "DEAR_"))
        }
        env |= {"DEAR_HOME": str(tmp_path), "COLUMNS": "160"} | environment
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd or ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
