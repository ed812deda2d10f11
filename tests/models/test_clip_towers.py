"""CLIP's weights in every form that people have them in give the tower that open_clip gives."""

import json

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import nn

from dear_core.models import Side4Video, build_tower, clip_towers, random_tower, tower_hash
from dear_core.models.weight_files import WeightsError

NAME = "dear-test-vit"
CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 32, "width": 32, "heads": 2, "layers": 1},
}
MARKS = {"input_resolution": 32, "context_length": 8, "vocab_size": 32}


@pytest.fixture(scope="module", autouse=True)
def small_models(tmp_path_factory):
    """Two names that open_clip knows: of a small ViT, and of the same with QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    (folder / f"{NAME}-quickgelu.json").write_text(json.dumps(CONFIG | {"quick_gelu": True}))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="module")
def model(small_models):
    torch.manual_seed(0)
    return open_clip.create_model(NAME)


class Part(nn.Module):
    """A module that only holds what a state dict holds."""

    def forward(self, x):
        return x


def as_module(state):
    root = Part()
    for key, value in state.items():
        part = root
        *parents, leaf = key.split(".")
        for name in parents:
            if name not in part._modules:
                part.add_module(name, Part())
            part = part._modules[name]
        if value.is_floating_point():
            part.register_parameter(leaf, nn.Parameter(value))
        else:
            part.register_buffer(leaf, value)
    return root


def openai_state(model):
    """Half precision, and the three sizes as tensors."""
    state = {key: value.half() for key, value in model.state_dict().items()}
    return state | {key: torch.tensor(value) for key, value in MARKS.items()}


def write(form, model, folder):
    """One of the forms on disk; returns its path."""
    state = model.state_dict()
    path = folder / {"safetensors": "open_clip_model.safetensors"}.get(form, f"{form}.pt")
    if form == "openai archive":
        torch.jit.script(as_module(openai_state(model))).save(path)
    elif form == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        saved = {
            "openai state dict": openai_state(model),
            "laion bin": state,
            "training": {
                "epoch": 4,
                "name": "run",
                "state_dict": {f"module.{k}": v for k, v in state.items()},
                "optimizer": {"state": {}, "param_groups": []},
            },
        }
        torch.save(saved[form], path)
    return str(path)


def quick(tower):
    found = {isinstance(module, QuickGELU) for module in tower.modules() if "GELU" in type(module).__name__}
    assert len(found) == 1
    return found.pop()


FORMS = ["openai archive", "openai state dict", "laion bin", "safetensors", "training"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_whole_tower(form, model, tmp_path):
    state = torch.random.get_rng_state()
    tower = build_tower(NAME, pretrained=write(form, model, tmp_path))
    assert torch.equal(torch.random.get_rng_state(), state)
    openai = form.startswith("openai")
    assert quick(tower) == openai
    for key, value in tower.visual.state_dict().items():
        want = model.visual.state_dict()[key]
        assert torch.equal(value, want.half().float() if openai else want), key
    report = tower.load_report
    assert report.missing == report.unexpected == report.reshaped == ()
    assert report.summary().startswith(f"loaded {len(tower.visual.state_dict())} of")
    assert ("OpenAI's marks" in report.ignored) == openai


def test_taps_are_those_of_open_clips_own_loader(model, tmp_path):
    path = write("laion bin", model, tmp_path)
    theirs = open_clip.create_model(NAME, pretrained=path, force_image_size=48, force_quick_gelu=True).eval()
    tower = build_tower(NAME, pretrained=path, image_size=48, quick_gelu=True)
    frames = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        out = theirs.visual.forward_intermediates(frames, output_fmt="NLC", intermediates_only=True)
    for tap, want in zip(tower(frames), out["image_intermediates"], strict=True):
        torch.testing.assert_close(tap[:, 1:], want)
    assert str(tower.load_report.reshaped[0]) == (
        "positional_embedding [17,64] → [37,64], bicubic with antialias"
    )


def test_the_name_or_the_key_decides_where_the_file_does_not_say(model, tmp_path):
    path = write("laion bin", model, tmp_path)
    assert not quick(build_tower(NAME, pretrained=path))
    assert quick(build_tower(NAME, pretrained=path, quick_gelu=True))
    assert quick(build_tower(f"{NAME}-quickgelu", pretrained=path))
    assert not quick(build_tower(f"{NAME}-quickgelu", pretrained=path, quick_gelu=False))
    assert not quick(build_tower(NAME)) and not hasattr(build_tower(NAME), "load_report")


@pytest.mark.parametrize(("says", "want"), [({"quick_gelu": True}, True), ({}, False)])
def test_a_tag_brings_its_activation(model, tmp_path, monkeypatch, says, want):
    path = write("safetensors", model, tmp_path)
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: {"file": path} | says)
    tower = build_tower(f"{NAME}-quickgelu" if not want else NAME, pretrained="some_tag")
    assert quick(tower) == want
    assert torch.equal(tower.visual.conv1.weight, model.visual.conv1.weight)


def test_a_tag_that_cannot_be_downloaded_is_one_sentence(monkeypatch):
    def fail(config):
        raise OSError("no route to host\nand much more")

    monkeypatch.setattr(open_clip, "download_pretrained", fail)
    with pytest.raises(WeightsError, match="tag 'openai' of 'ViT-B-16' could not be downloaded") as caught:
        build_tower("ViT-B-16", pretrained="openai")
    assert "\n" not in str(caught.value)


def test_openais_tags_need_quick_gelu_and_laions_do_not():
    assert clip_towers.tag_config("ViT-B-16", "openai")["quick_gelu"]
    assert not clip_towers.tag_config("ViT-B-16", "laion2b_s34b_b88k").get("quick_gelu")
    assert clip_towers.tag_config("ViT-B-16", "some/file.pt") is None
    assert clip_towers.tag_config("ViT-B-16", None) is None


def test_a_side4video_file_can_be_the_tower(tmp_path):
    sizes = {"patch_size": 8, "image_size": 32}
    used = random_tower(width=64, layers=2, heads=2, seed=1, **sizes)
    side = Side4Video(tower_width=64, tower_layers=2, num_frames=2, dim=64, **sizes)
    state = {f"visual.{k}": v for k, v in (used.visual.state_dict() | side.state_dict()).items()}
    torch.save({"epoch": 1, "model_state_dict": state}, tmp_path / "side.pt")
    tower = build_tower(NAME, pretrained=str(tmp_path / "side.pt"))
    assert tower_hash(tower) == tower_hash(used)
    assert quick(tower)
    assert "side network" in tower.load_report.ignored


def test_a_file_that_does_not_fit_is_one_sentence(model, tmp_path):
    state = dict(model.state_dict())
    torch.save(state | {"visual.conv1.weight": torch.zeros(64, 3, 4, 4)}, tmp_path / "patch.pt")
    torch.save({key: value for key, value in state.items() if "ln_pre.bias" not in key}, tmp_path / "less.pt")
    torch.save(state | {"visual.attn_pool.query": torch.zeros(3)}, tmp_path / "more.pt")
    torch.save({"layer1.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(state | {"visual.ln_pre.bias": torch.full((64,), float("nan"))}, tmp_path / "nan.pt")
    sentences = {
        "patch": r"conv1.weight is \[64, 3, 4, 4\], the module's is \[64, 3, 8, 8\]",
        "less": r"missing \['ln_pre.bias'\] \(1\), unexpected \[\]",
        "more": r"unexpected \['visual.attn_pool.query'\]",
        "other": r"it does not fit VisionTransformer, nothing loaded",
        "nan": r"ln_pre.bias holds NaN",
    }
    for name, sentence in sentences.items():
        with pytest.raises(WeightsError, match=sentence) as caught:
            build_tower(NAME, pretrained=str(tmp_path / f"{name}.pt"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_precision_is_open_clips(model, tmp_path, precision):
    path = write("laion bin", model, tmp_path)
    tower = build_tower(NAME, pretrained=path, precision=precision)
    theirs = open_clip.create_model(NAME, pretrained=path, precision=precision).visual.state_dict()
    for key, value in tower.visual.state_dict().items():
        assert value.dtype == theirs[key].dtype
        assert torch.equal(value, theirs[key]), key
