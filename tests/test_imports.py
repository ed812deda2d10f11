"""The library stands alone: it imports without Ray, Optuna and MLflow, and importing does nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PROGRAM = """
import importlib, pkgutil, sys
for absent in ("ray", "optuna", "mlflow", "mamba_ssm", "causal_conv1d"):
    sys.modules[absent] = None  # importing it raises ImportError
import torch
import numpy
def state():
    draws = torch.random.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()
    return draws, torch.get_num_threads(), torch.get_default_dtype()
before = state()
import dear_core
for module in pkgutil.walk_packages(dear_core.__path__, "dear_core."):
    importlib.import_module(module.name)
    print(module.name)
assert before == state()
assert not torch.distributed.is_initialized()
"""


@pytest.mark.slow
def test_the_library_imports_alone_and_does_nothing():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert {"dear_core.build", "dear_core.eval", "dear_core.training.loop", "dear_core.tracking"} <= modules
    files = [p for p in (ROOT / "dear_core").rglob("*.py") if p.name != "__init__.py"]
    assert len(modules) >= len(files)
