import re
import shlex
import typing
from pathlib import Path

import pytest
import tyro
from tyro.conf import FlagCreatePairsOff

from dear_core import build, presets
from dear_core.config import FusionConfig, RunConfig, load, parse_assignments
from dear_core.errors import InputError
from ray_jobs import search
from ray_jobs.sweep import Options

FUSION_PAGE = Path(__file__).parent.parent / "docs" / "fusion.md"


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("train.epoch=3", "train.epoch: no such key; did you mean train.epochs?"),
        ("lr=3", "lr: no such key; did you mean train.lr?"),
        ("train.epochs=many", "train.epochs: input should be a valid integer"),
        ("train.lr=-1", "train.lr: input should be greater than 0 (got -1)"),
        ("train=3", "train: a group of keys, not a value"),
        ("train.epochs", "--set train.epochs: not KEY=VALUE"),
        ("train.epochs=[1", "--set train.epochs: '[1' is no YAML value"),
        ("model.branches=[]", "model.branches: no branch, so no stream gives scores"),
        ("model.branches=[rgb]", "'rgb' is not MODALITY:ENCODER"),
        ("model.branches=[rgb:vit]", "input should be 'side4video' or 'videomamba'"),
        ("model.branches=[rgb:side4video,rgb:side4video]", "rgb:side4video is named twice"),
        ("data.crop_size=72", "data.crop_size 72 is no multiple of model.videomamba.patch_size 16"),
        ("data.short_side=32", "data.short_side 32 is smaller than data.crop_size 64; make it at least 64"),
        ("train.warmup_epochs=10", "warmup_epochs 10 leaves none of 6 epochs"),
    ],
)
def test_a_wrong_assignment_is_one_sentence_that_names_the_key(assignment, sentence):
    with pytest.raises(InputError) as caught:
        presets.demo().replace(parse_assignments([assignment]))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_survive_yaml_and_json():
    config = presets.demo().replace(parse_assignments(["train.lr=1e-4", "model.branches=[rgb:videomamba]"]))
    assert config.train.lr == 1e-4
    assert config.model.row == "RGB(VideoMamba)"
    assert load(config.model_dump(mode="json")) == config


def test_an_unknown_key_in_a_file_is_refused():
    with pytest.raises(InputError, match=r"train\.epoch: no such key; did you mean train\.epochs"):
        load({"train": {"epoch": 3}})


def test_rows_are_named_in_the_papers_words():
    rows = {
        "RGB": ["rgb:side4video"],
        "RGB+Depth(VideoMamba)": ["rgb:side4video", "depth:videomamba"],
        "RGB+Depth+Depth(VideoMamba)": ["rgb:side4video", "depth:side4video", "depth:videomamba"],
        "RGB+RGB(VideoMamba)": ["rgb:side4video", "rgb:videomamba"],
        "RGB(VideoMamba)+Depth(VideoMamba)": ["rgb:videomamba", "depth:videomamba"],
        "Depth+RGB": ["depth:side4video", "rgb:side4video"],
        "Depth(VideoMamba)": ["depth:videomamba"],
    }
    for name, branches in rows.items():
        assert presets.demo().replace({"model.branches": branches}).model.row == name


@pytest.mark.parametrize(
    "change",
    [{"data.root": "elsewhere"}, {"data.cache_dir": None}, {"data.workers": 4}, {"train.eval_batch_size": 2}],
)
def test_what_cannot_change_the_result_is_not_in_the_key(change):
    assert presets.demo().replace(change).key == presets.demo().key


@pytest.mark.parametrize(
    "change",
    [
        {"train.seed": 1},
        {"train.lr": 2e-3},
        {"train.batch_size": 8},
        {"data.identity": "other"},
        {"model.tower.seed": 1},
        {"model.branches": ["rgb:side4video"]},
    ],
)
def test_what_can_change_the_result_is_in_the_key(change):
    assert presets.demo().replace(change).key != presets.demo().key


def test_parts_that_no_branch_uses_are_not_in_the_key():
    rgb = presets.demo().replace({"model.branches": ["rgb:side4video"]})
    assert rgb.replace({"model.videomamba.depth": 9, "model.fusion.gate": "none"}).key == rgb.key
    mamba = presets.demo().replace({"model.branches": ["depth:videomamba"]})
    assert mamba.replace({"model.tower.seed": 9, "model.side4video.dim": 128}).key == mamba.key
    assert mamba.replace({"model.videomamba.depth": 9}).key != mamba.key


STARTED = {"model.side4video.pretrained": "a.pt", "model.videomamba.pretrained": "b.pth"}


def test_a_weights_file_is_in_the_key_by_its_hash_and_not_by_its_path():
    demo = presets.demo()
    assert demo.replace(STARTED).key == demo.key
    for part in ("side4video", "videomamba"):
        one = demo.replace({f"model.{part}.pretrained_identity": "one"})
        assert one.key not in (demo.key, demo.replace({f"model.{part}.pretrained_identity": "two"}).key)


def test_a_tower_is_in_the_key_by_what_decides_it():
    def key(**values):
        changed = {"name": "ViT-B-16", "pretrained": "openai"} | values
        return presets.demo().replace({f"model.tower.{name}": value for name, value in changed.items()}).key

    assert key() == key(seed=5) == key(width=64)
    assert key() != key(pretrained="laion2b_s34b_b88k")
    assert key() != key(quick_gelu=False)
    assert key(pretrained="a.pt", pretrained_identity="1") == key(pretrained="b.pt", pretrained_identity="1")
    assert key(pretrained="a.pt", pretrained_identity="1") != key(pretrained="a.pt", pretrained_identity="2")
    assert key(pretrained=None) != key(pretrained=None, seed=5)
    assert key(name="random") == key(name="random", pretrained=None) != key(name="random", seed=5)
    assert key(name="random") != key(name="random", quick_gelu=False)


def test_the_papers_preset_has_the_papers_figures():
    config = presets.ssv2_vitb16()
    assert (config.data.num_frames, config.data.crop_size, config.model.tower.name) == (8, 224, "ViT-B-16")
    assert (config.train.lr, config.train.epochs, config.model.side4video.dim) == (1e-3, 30, 320)


def test_every_key_is_explained():
    rows = list(RunConfig().explain())
    assert {key for key, _, _ in rows} == set(RunConfig().flat())
    assert [key for key, _, meaning in rows if not meaning] == []


FUSION = {  # another value of every key
    "kind": "scores", "gate": "sigmoid", "gate_init": 0.0, "mlp_ratio": 4, "tokens": "patch", "layers": 2,
    "heads": 4, "direction": "other_to_first", "combine": "max", "dropout": 0.5,
}  # fmt: skip
ATTENTION = {"gate", "gate_init", "mlp_ratio", "tokens", "layers", "heads", "direction"}
ROW = {1: ["rgb:side4video"], 2: ["rgb:side4video", "depth:side4video"]}
ROW[3] = [*ROW[2], "depth:videomamba"]


@pytest.mark.parametrize(
    ("branches", "values", "read"),
    [
        (1, {}, {"dropout"}),
        (1, {"kind": "concat"}, {"dropout"}),
        (2, {}, {"kind", "dropout"} | ATTENTION),
        (2, {"gate": "none"}, {"kind", "dropout"} | ATTENTION - {"gate_init"}),
        (3, {}, {"kind", "dropout", "combine"} | ATTENTION),
        (2, {"kind": "concat"}, {"kind", "dropout"}),
        (3, {"kind": "sum"}, {"kind", "dropout", "combine"}),
        (2, {"kind": "scores"}, {"kind", "dropout", "combine"}),
    ],
)
def test_the_key_holds_the_values_of_fusion_that_the_model_reads(branches, values, read):
    assert set(FUSION) == set(FusionConfig.model_fields)
    base = presets.demo().replace({"model.branches": ROW[branches]})
    base = base.replace({f"model.fusion.{name}": value for name, value in values.items()})
    other = FUSION | ({"kind": "concat"} if values.get("kind") == "scores" else {})
    changed = {name: base.replace({f"model.fusion.{name}": value}) for name, value in other.items()}
    assert {name for name, config in changed.items() if config.key != base.key} == read


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("kind=product", "model.fusion.kind: input should be 'cross_attention', 'concat', 'sum' or 'scores'"),
        ("direction=a_to_b", "model.fusion.direction: input should be 'both', 'first_to_other'"),
        ("combine=min", "model.fusion.combine: input should be 'mean', 'learned', 'max' or 'mean_prob'"),
        ("gate_init=.nan", "model.fusion.gate_init: input should be a finite number"),
        ("mlp_ratio=-1", "model.fusion.mlp_ratio: input should be greater than or equal to 0"),
        ("layers=0", "model.fusion.layers: input should be greater than or equal to 1"),
        ("gates=tanh", "model.fusion.gates: no such key; did you mean model.fusion.gate?"),
    ],
)
def test_a_wrong_choice_of_fusion_is_refused(assignment, sentence):
    with pytest.raises(InputError) as caught:
        presets.demo().replace(parse_assignments([f"model.fusion.{assignment}"]))
    assert sentence in str(caught.value)


def test_the_page_on_fusion_has_the_real_keys_and_options():
    text = FUSION_PAGE.read_text()
    named = set(re.findall(r"model\.fusion\.(\w+)", text))
    assert named == set(FusionConfig.model_fields)
    cells = dict(re.findall(r"^\| `model\.fusion\.(\w+)` \| ([^|]*) \|", text, re.M))
    for name, field in FusionConfig.model_fields.items():
        options = typing.get_args(field.annotation)
        if options:
            assert re.findall(r"`(\w+)`", cells[name]) == list(options), name
            assert options[0] == field.default
            assert all(f"{option}" in field.description for option in options), name
        else:
            assert f"{field.default:g}" in cells[name], name


def test_the_commands_on_the_page_on_fusion_do_what_they_say(tmp_path, monkeypatch):
    """Its sweep is loaded, its commands parsed, and every arm of them becomes a network."""
    monkeypatch.chdir(tmp_path)
    text = FUSION_PAGE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "fusions.py").write_text(code)
    commands = re.findall(r"^python ray_jobs/sweep\.py (.*)$", text, re.M)
    assert len(commands) == 3
    for command in commands:
        options = tyro.cli(Options, args=shlex.split(command), config=(FlagCreatePairsOff,))
        sweep = search.load(options.sweep)
        base = sweep.base().replace(parse_assignments(word for words in options.set for word in words))
        arms = [base.replace(arm.values) for arm in search.arms(sweep.space)]
        assert len({arm.key for arm in arms}) == len(arms) == (6 if "--sweep" in command else 4)
        for arm in arms:
            build.model(arm, 10)
