"""Presets by name, and the published numbers in them."""

import pytest

from dear_core import presets
from dear_core.config import DataConfig, load
from dear_core.errors import InputError
from sweeps import branches


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_found_by_its_name(name):
    config = presets.by_name(name)
    assert config == presets.PRESETS[name]()
    assert load(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("name", "tower", "side_width", "lr"),
    [
        ("ssv2_vitb32", "ViT-B-32", 320, 1e-3),
        ("ssv2_vitb16", "ViT-B-16", 320, 1e-3),
        ("ssv2_vitl14", "ViT-L-14", 512, 1e-4),
    ],
)
def test_full_size_presets_have_the_published_recipe(name, tower, side_width, lr):
    config = presets.by_name(name)
    model, train = config.model, config.train
    assert (model.tower.name, model.tower.pretrained, model.side4video.dim) == (tower, "openai", side_width)
    assert (train.lr, train.weight_decay, train.epochs, train.warmup_epochs) == (lr, 0.15, 30, 4)
    assert (train.batch_size, train.label_smoothing, train.betas) == (16 * 8, 0.1, (0.9, 0.999))
    assert (config.data.num_frames, config.data.crop_size) == (8, 224)
    assert (model.videomamba.embed_dim, model.videomamba.depth, model.videomamba.drop_path) == (384, 24, 0.35)


def test_a_variant_is_its_base_and_a_few_changes():
    base = presets.ssv2_vitb16().flat()
    changed = {key: value for key, value in presets.ssv2_vitl14().flat().items() if base[key] != value}
    assert changed == {"model.tower.name": "ViT-L-14", "model.side4video.dim": 512, "train.lr": 1e-4}


@pytest.mark.parametrize("change", presets.CHANGES)
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_group_of_changes_fits_every_preset(name, change):
    flat = presets.by_name(f"{name}+{change}").flat()
    assert {key: flat[key] for key in presets.CHANGES[change]} == presets.CHANGES[change]


def test_changes_are_made_from_left_to_right():
    config = presets.by_name("ssv2_vitb16+videomamba_tiny+side4video_vitl14+videomamba_middle")
    assert config.model.tower.name == "ViT-L-14"
    assert (config.model.videomamba.embed_dim, config.model.videomamba.depth) == (576, 32)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ssv2_vitl16", "--preset ssv2_vitl16: no such preset; did you mean ssv2_vit"),
        ("", "no such preset; known are demo"),
        ("demo+videomamba_smal", "no such group of changes; did you mean videomamba_small? known are side4v"),
        ("demo+", "no such group of changes"),
    ],
)
def test_an_unknown_name_is_one_sentence_that_lists_the_known_ones(name, sentence):
    with pytest.raises(InputError) as caught:
        presets.by_name(name)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_the_papers_rows_are_those_of_the_sweep():
    assert [list(row) for row in presets.PAPER_ROWS] == list(branches.ROWS.values())
    base = presets.ssv2_vitb16()
    assert [base.replace({"model.branches": list(row)}).model.row for row in presets.PAPER_ROWS] == list(
        branches.ROWS
    )


def test_the_data_keys_of_a_command_lines_preset():
    assert presets.data_keys(["--height", "64", "--preset=demo"]).root == "data/demo"
    assert presets.data_keys(["--preset", "ssv2_vitb16", "--height", "64"]).root == "data/ssv2"
    assert presets.data_keys(["--height", "64"]) == DataConfig()
    with pytest.raises(InputError, match="did you mean ssv2_vitb16"):
        presets.data_keys(["--preset", "ssv2_vitb61"])
