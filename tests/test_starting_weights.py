"""A run that starts from weights files: its key is their content, and what was loaded is said and kept."""

import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch

from dear_core import build, starting_weights
from dear_core.errors import InputError

BRANCHES = {"model.branches": ["rgb:side4video", "depth:side4video", "depth:videomamba"]}
NAME = "dear-test-start"


def save_side(network, path, *, tower=None):
    """A Side4Video file of the network's RGB branch, every weight of it raised by one."""
    side = {key: value + 1 for key, value in network.branches["rgb:side4video"].state_dict().items()}
    visual = side | (tower.visual.state_dict() if tower is not None else {})
    flat = {f"module.visual.{key}": value for key, value in visual.items()}
    flat |= {"module.fc.weight": torch.ones(5, 64), "module.fc.bias": torch.ones(5)}
    torch.save({"epoch": 1, "model_state_dict": flat, "optimizer_state_dict": {}}, path)
    return str(path)


def save_mamba(network, path):
    state = {key: value + 1 for key, value in network.branches["depth:videomamba"].state_dict().items()}
    torch.save({"model": state}, path)
    return str(path)


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(BRANCHES)


@pytest.fixture
def files(config, tmp_path):
    """Config values that name a Side4Video and a VideoMamba file."""
    network = build.model(config, 5)
    return {
        "model.side4video.pretrained": save_side(network, tmp_path / "side.pt", tower=network.tower),
        "model.videomamba.pretrained": save_mamba(network, tmp_path / "mamba.pth"),
    }


def test_every_branch_with_the_encoder_starts_from_the_file(config, files, caplog):
    plain = build.model(config, 5)
    with caplog.at_level(logging.INFO, logger=starting_weights.__name__):
        network = build.model(config.replace(files), 5)
    for name, branch in network.branches.items():
        source = "rgb:side4video" if name.endswith("side4video") else name
        for key, value in plain.branches[source].state_dict().items():
            assert torch.equal(branch.state_dict()[key], value + 1), (name, key)
    reports = starting_weights.reports(network)
    assert set(reports) == {f"branches.{name}" for name in network.branches}
    report = reports["branches.depth:side4video"]
    assert report.notes[0] == "its classifier was left out"
    assert report.notes[1].startswith("its frozen tower is the one in use (")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert f"model.side4video.pretrained: {files['model.side4video.pretrained']}: loaded " in lines[0]
    assert starting_weights.reports(plain) == {}


def test_moving_a_file_keeps_the_key_and_a_changed_byte_does_not(config, files, tmp_path):
    plain, first = build.resolve(config), build.resolve(config.replace(files))
    assert first.key != plain.key
    for key, path in files.items():
        moved = tmp_path / "elsewhere" / "weights.bin"
        moved.parent.mkdir(exist_ok=True)
        data = Path(path).read_bytes()
        moved.write_bytes(data)
        assert build.resolve(config.replace(files | {key: str(moved)})).key == first.key
        moved.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert build.resolve(config.replace(files | {key: str(moved)})).key != first.key


def test_a_resolved_config_wants_its_own_file(config, files):
    resolved = build.resolve(config.replace(files))
    assert build.resolve(resolved) == resolved
    with Path(files["model.videomamba.pretrained"]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"model.videomamba.pretrained_identity: .*made for weights"):
        build.resolve(resolved)


def test_a_checkpoints_config_is_built_without_the_file_but_not_trained(config, files):
    """What evaluation needs: the trained weights are in the checkpoint, the key stays as it was."""
    resolved = build.resolve(config.replace(files))
    later = build.resolve(resolved.replace(dict.fromkeys(files)))
    assert later.key == resolved.key
    assert starting_weights.reports(build.model(later, 5)) == {}
    with pytest.raises(InputError, match=r"model.side4video.pretrained: .* made for weights"):
        build.job(later)


def test_a_part_that_no_branch_uses_needs_no_file(config):
    config = config.replace({"model.branches": ["rgb:side4video"]})
    other = config.replace({"model.videomamba.pretrained": "/nowhere.pth"})
    assert build.resolve(other).key == build.resolve(config).key


@pytest.mark.parametrize("part", ["side4video", "videomamba"])
def test_bad_files_name_the_key_and_the_file(config, files, tmp_path, part):
    key = f"model.{part}.pretrained"
    with pytest.raises(InputError, match=rf"^{key}: /nowhere.pt: no such file$"):
        build.resolve(config.replace({key: "/nowhere.pt"}))
    other = next(path for name, path in files.items() if name != key)
    with pytest.raises(InputError, match=rf"^{key}: {other}: it does not fit") as caught:
        build.model(config.replace({key: other}), 5)
    assert "\n" not in str(caught.value)


def test_a_side_network_of_another_tower_is_refused(config, tmp_path):
    network = build.model(config, 5)
    other = build.tower(config.replace({"model.tower.seed": 9}))
    path = save_side(network, tmp_path / "other.pt", tower=other)
    with pytest.raises(InputError, match=r"model.side4video.pretrained: .* another tower .* name this file"):
        build.model(config.replace({"model.side4video.pretrained": path}), 5)
    path = save_side(network, tmp_path / "none.pt")
    started = build.model(config.replace({"model.side4video.pretrained": path}), 5)
    report = starting_weights.reports(started)["branches.rgb:side4video"]
    assert report.notes[-1] == "it has no frozen tower to compare"


@pytest.fixture
def named(config, tmp_path):
    """A config whose tower is a small model that open_clip knows by name."""
    vision = {"image_size": 64, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1}
    (tmp_path / f"{NAME}.json").write_text(
        json.dumps({"embed_dim": 32, "vision_cfg": vision, "text_cfg": text})
    )
    open_clip.add_model_config(tmp_path / f"{NAME}.json")
    return config.replace(
        {"model.branches": ["rgb:side4video"], "model.tower.name": NAME, "model.tower.pretrained": None}
    )


def test_a_towers_file_is_its_content_and_a_tag_is_its_text(named, tmp_path):
    def key(path):
        return build.resolve(named.replace({"model.tower.pretrained": str(path)})).key

    state = {f"visual.{k}": v + 1 for k, v in build.tower(named).visual.state_dict().items()}
    for name, state_ in (("one", state), ("two", state), ("three", state | {"logit_scale": torch.ones(1)})):
        torch.save(state_, tmp_path / f"{name}.pt")
    (tmp_path / "two.pt").write_bytes((tmp_path / "one.pt").read_bytes())
    assert key(tmp_path / "one.pt") == key(tmp_path / "two.pt") != key(tmp_path / "three.pt")
    network = build.model(named.replace({"model.tower.pretrained": str(tmp_path / "one.pt")}), 5)
    assert torch.equal(network.tower.visual.conv1.weight, state["visual.conv1.weight"])
    assert starting_weights.reports(network)["tower"].ignored == {}
    tags = [named.replace({"model.tower.name": "ViT-B-16", "model.tower.pretrained": tag}) for tag in
            ("openai", "laion2b_s34b_b88k")]  # fmt: skip
    assert tags[0].key != tags[1].key
    assert build.resolve(tags[0]).model.tower.pretrained_identity is None


def test_a_tower_without_weights_is_drawn_from_its_seed(named):
    one, other = build.tower(named), build.tower(named.replace({"model.tower.seed": 3}))
    torch.rand(1)
    assert torch.equal(one.visual.conv1.weight, build.tower(named).visual.conv1.weight)
    assert not torch.equal(one.visual.conv1.weight, other.visual.conv1.weight)
    assert named.key != named.replace({"model.tower.seed": 3}).key


def test_a_towers_bad_file_names_its_key(named, tmp_path):
    torch.save({"visual.conv1.weight": torch.zeros(64, 3, 8, 8)}, tmp_path / "w.pt")
    config = named.replace({"model.tower.pretrained": str(tmp_path / "w.pt")})
    with pytest.raises(InputError, match=r"^model.tower.pretrained: .*w.pt: 1 shapes differ") as caught:
        build.model(config, 5)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"^model.tower.pretrained: /nowhere.pt: no such file$"):
        build.resolve(named.replace({"model.tower.pretrained": "/nowhere.pt"}))
    with pytest.raises(InputError, match=r"^model.tower: open_clip knows no model 'ViT-Z-1'"):
        build.tower(named.replace({"model.tower.name": "ViT-Z-1"}))
    tagged = named.replace({"model.tower.pretrained_identity": "0123456789abcdef"})
    with pytest.raises(InputError, match=r"model.tower.pretrained_identity: .* gives no file"):
        build.resolve(tagged)


def test_side_network_and_tower_of_one_file(named, tmp_path):
    network = build.model(named, 5)
    path = save_side(network, tmp_path / "both.pt", tower=network.tower)
    values = {"model.tower.pretrained": path, "model.side4video.pretrained": path, "model.tower.seed": 4}
    both = build.model(build.resolve(named.replace(values)), 5)
    assert torch.equal(both.tower.visual.conv1.weight, network.tower.visual.conv1.weight)
    assert set(starting_weights.reports(both)) == {"tower", "branches.rgb:side4video"}
