"""What is known before anything runs: the arms, what they start from, and where paths point."""

import pytest
import torch

from dear_core import build, presets
from dear_core.errors import InputError
from dear_core.models import VideoMamba
from ray_jobs import plan as planning
from ray_jobs import search


@pytest.fixture
def base(tiny_root):
    return presets.demo().replace({"data.root": str(tiny_root), "data.cache_dir": None})


@pytest.fixture
def mamba_file(base, tmp_path, monkeypatch):
    """Weights of a VideoMamba of the demo's size for 16 frames, in the working folder of a user."""
    monkeypatch.setenv("DEAR_HOME", str(tmp_path))
    demo = base.model.videomamba
    model = VideoMamba(
        image_size=64, patch_size=16, num_frames=16, embed_dim=demo.embed_dim, depth=demo.depth
    )
    state = {**model.state_dict(), "head.weight": torch.ones(5, demo.embed_dim), "head.bias": torch.ones(5)}
    torch.save({"model": state}, tmp_path / "mamba.pth")
    return "mamba.pth"


def test_the_plan_says_what_was_loaded_and_paths_are_absolute(base, mamba_file, tmp_path):
    base = base.replace({"model.videomamba.pretrained": mamba_file})
    plan = planning.make(search.load("branches"), base, tmp_path / "results")
    assert plan.base.model.videomamba.pretrained == str(tmp_path / mamba_file)
    (line,) = plan.weights  # the two arms with a VideoMamba load the same
    assert line.startswith("branches.depth:videomamba: loaded")
    assert "temporal_pos_embedding [1,16,64] → [1,8,64]" in line
    assert "its classifier was left out" in line
    keys = {name: run.key for name, (_, run) in plan.runs.items()}
    plain = planning.make(
        search.load("branches"), base.replace({"model.videomamba.pretrained": None}), tmp_path
    )
    same = {name for name, (_, run) in plain.runs.items() if run.key == keys[name]}
    assert same == {"RGB", "RGB+Depth"}, "weights are part of the runs that start from them, and of no other"


def test_every_network_of_an_arm_starts_from_the_file(base, mamba_file, tmp_path):
    base = base.replace({"model.videomamba.pretrained": str(tmp_path / mamba_file)})
    config = build.resolve(base.replace({"model.branches": ["depth:videomamba"]}))
    network = build.model(config, 10)
    stored = torch.load(tmp_path / mamba_file, weights_only=True)["model"]
    assert torch.equal(network.branches["depth:videomamba"].cls_token, stored["cls_token"])
    assert torch.equal(network.branches["depth:videomamba"].norm_f.weight, stored["norm_f.weight"])


def test_a_file_that_does_not_fit_stops_the_plan_and_names_the_arm(base, mamba_file, tmp_path):
    base = base.replace({"model.videomamba.pretrained": mamba_file, "model.videomamba.depth": 2})
    with pytest.raises(InputError, match=r"model.videomamba.pretrained: .*layers.2.*\(arm RGB\+Depth"):
        planning.make(search.load("branches"), base, tmp_path / "results")


def test_bf16_holds_the_tower_in_bf16_and_nothing_else(base):
    config = base.replace(
        {"train.precision": "bf16", "model.branches": ["rgb:side4video", "depth:side4video"]}
    )
    network = build.model(build.resolve(config), 10)
    assert {weight.dtype for weight in network.tower.parameters()} == {torch.bfloat16}
    assert {w.dtype for n, w in network.named_parameters() if not n.startswith("tower.")} == {torch.float32}


def test_checkpointing_reaches_every_branch_and_no_key(base):
    config = base.replace({"train.gradient_checkpointing": True})
    assert config.key == base.key
    branches = build.model(build.resolve(config), 10).branches
    assert branches["depth:videomamba"].checkpointing
    assert branches["rgb:side4video"].transformer.checkpointing
