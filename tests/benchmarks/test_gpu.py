"""The GPU benchmark runs to its end at its toy size, on a CPU, and imports no more than it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = ("ray", "pydantic", "rich", "mlflow", "optuna", "decord", "tyro")


@pytest.mark.slow
def test_it_runs_to_its_end(tmp_path):
    file = tmp_path / "figures.json"
    command = [ROOT / "benchmarks" / "gpu.py", "--tiny", "--no-compile", "--steps", "2", "--json", file]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(file.read_text())
    assert [(step["row"], step["mode"]) for step in figures["steps"]] == [
        ("RGB", "eager"),
        ("RGB + Depth (VideoMamba)", "eager"),
        ("RGB + Depth", "eager"),
        ("RGB + Depth + Depth (VideoMamba)", "eager"),
    ]
    assert all(step["clips_per_second"] > 0 and step["flops_per_second"] > 0 for step in figures["steps"])
    assert [scan["scan"] for scan in figures["scans"]] == ["ours", "torch, chunked"]
    assert all(check["error"] <= check["tolerance"] for check in figures["checks"])
    assert figures["skipped"] == []
    assert "| RGB | 2 | eager |" in done.stdout


@pytest.mark.slow
def test_a_spent_time_limit_skips_and_says_so(tmp_path):
    command = [ROOT / "benchmarks" / "gpu.py", "--tiny", "--no-compile", "--rows", "1", "--time-limit", "-1"]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Skipped" in done.stdout


@pytest.mark.slow
def test_it_imports_no_more_than_a_gpu_machine_has():
    code = f"""
import runpy, sys
for name in {FORBIDDEN!r} + ("numba",):
    sys.modules[name] = None
runpy.run_path({str(ROOT / "benchmarks" / "gpu.py")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
