"""`ray up`, `ray submit` and `ray down` on cluster.yaml as it is, against a real sshd on the loopback."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.sshd import SSHD, Host

ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).with_name("ray"))
ROWS = ["RGB", "RGB+Depth(VideoMamba)", "RGB+Depth", "RGB+Depth+Depth(VideoMamba)"]
pytestmark = pytest.mark.cluster


@pytest.fixture
def host(tmp_path):
    """A host with an empty account that can ssh to itself."""
    if os.geteuid() != 0 or SSHD is None or shutil.which("rsync") is None:
        pytest.fail("needs root, sshd and rsync (openssh-server, rsync); deselect with -m 'not cluster'")
    host = Host(tmp_path)
    try:
        host.start()
        yield host
    finally:
        host.stop()
        shutil.rmtree(tmp_path)  # the cluster's environment takes gigabytes


def ray(host, *arguments, timeout):
    """Run Ray's launcher in the project's folder, as a user does; it has to succeed."""
    done = host.run(RAY, *arguments, cwd=ROOT, timeout=timeout)
    log = host.log.read_text()[-2000:] if done.returncode else ""
    assert done.returncode == 0, f"ray {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}\n{log}"
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # without colours


def mlflow_runs(results):
    """The sweep's run, and those under it, from the results' own database."""
    client = MlflowClient(f"sqlite:///{results}/mlflow.db")
    experiment = client.get_experiment_by_name("dear")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == len(runs) - 1
    return parent, children


def of_the_cluster(host):
    """Processes that Ray started: by its own programs' names, or from the cluster's environment."""
    signs = ("ray::", "raylet", "gcs_server", f"{host.home}/dear/.venv/")
    return [line for line in host.processes() if any(sign in line for sign in signs)]


@pytest.mark.timeout(2100)
def test_one_host_from_nothing_to_nothing(host, tiny_root):
    shared = host.home / "dear-shared"
    shutil.copytree(tiny_root, shared / "data/tiny")

    ray(host, "up", "-y", "cluster.yaml", timeout=1200)
    assert of_the_cluster(host)
    settings = "train.epochs=1 train.batch_size=4 data.root=data/tiny data.cache_dir=data/tiny/frames"
    said = ray(host, "submit", "cluster.yaml", "ray_jobs/sweep.py", "--", "--set", settings, timeout=600)
    ray(host, "down", "-y", "cluster.yaml", timeout=240)

    table = [line.split("│")[1].strip() for line in said.splitlines() if line.count("│") > 5]
    assert table == ROWS, said
    assert "dear/.venv/bin/python -m dear_core.eval" in said  # the environment that it ran in
    parent, children = mlflow_runs(shared / "results")
    assert parent.info.status == "FINISHED"
    assert sorted(run.info.run_name for run in children) == sorted(ROWS)
    for run in children:
        assert run.info.status == "FINISHED"
        assert 0 <= run.data.metrics["validation/top1"] <= 1
        assert Path(run.data.tags["dear.checkpoint"]).is_relative_to(shared / "results")

    deadline = time.monotonic() + 30  # ssh keeps its shared connection for some seconds
    while (left := of_the_cluster(host)) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left
    state = json.loads((host.folder / "tmp/ray/cluster-dear.state").read_text())
    assert [node["state"] for node in state.values()] == ["terminated"]
