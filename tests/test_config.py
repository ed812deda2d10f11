import pytest

from dear_core import presets
from dear_core.config import RunConfig, load, parse_assignments
from dear_core.errors import InputError


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


def test_the_papers_preset_has_the_papers_figures():
    config = presets.ssv2_vitb16()
    assert (config.data.num_frames, config.data.crop_size, config.model.tower.name) == (8, 224, "ViT-B-16")
    assert (config.train.lr, config.train.epochs, config.model.side4video.dim) == (1e-3, 30, 320)


def test_every_key_is_explained():
    rows = list(RunConfig().explain())
    assert {key for key, _, _ in rows} == set(RunConfig().flat())
    assert [key for key, _, meaning in rows if not meaning] == []
