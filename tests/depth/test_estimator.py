"""Depth estimation through transformers: the same numbers as its own processor and model, strict loading."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTForDepthEstimation,
    DPTImageProcessor,
)

from dear_core.depth.estimator import MODELS, DepthEstimator, find_weights
from dear_core.errors import InputError
from tests.tiny_depth import dpt_hybrid, lively

HYBRID = "Intel/dpt-hybrid-midas"
ANYTHING = "depth-anything/Depth-Anything-V2-Small-hf"


def _anything(**more):
    dino = Dinov2Config(
        image_size=70,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=dino.to_dict(),
        reassemble_hidden_size=24,
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=8,
        head_hidden_size=8,
        **more,
    )
    return lively(DepthAnythingForDepthEstimation(config))


PROCESSORS = {
    HYBRID: {
        "size": {"height": 64, "width": 64},
        "resample": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    },
    ANYTHING: MODELS[ANYTHING].preprocessing | {"size": {"height": 70, "width": 70}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of both kinds, saved as the hub has them."""
    made = {}
    for name, model in ((HYBRID, dpt_hybrid(64)), (ANYTHING, _anything())):
        made[name] = tmp_path_factory.mktemp("weights")
        model.save_pretrained(made[name])
        DPTImageProcessor(**PROCESSORS[name]).save_pretrained(made[name])
    return made


@pytest.fixture
def hybrid(folders, tmp_path):
    """A copy of the hybrid's folder that a test may spoil."""
    for path in folders[HYBRID].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def _frames(count=5, height=48, width=84):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _refusal(folder, name=HYBRID):
    with pytest.raises(InputError) as caught:
        DepthEstimator.load(name, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "network"), [(HYBRID, (64, 64)), (ANYTHING, (42, 70))])
def test_the_numbers_of_transformers(folders, name, network):
    estimator = DepthEstimator.load(name, folders[name])
    frames = _frames()
    assert estimator.batch_shape(48, 84) == network
    depth = estimator.estimate(frames, (40, 70))
    assert depth.shape == (5, 40, 70) and depth.dtype == torch.float32 and not depth.requires_grad

    kind = DPTForDepthEstimation if name == HYBRID else DepthAnythingForDepthEstimation
    processor = DPTImageProcessor.from_pretrained(folders[name])
    inputs = processor(images=list(frames), return_tensors="pt")
    torch.testing.assert_close(estimator.prepare(frames), inputs["pixel_values"], rtol=0, atol=0)
    with torch.no_grad():
        outputs = kind.from_pretrained(folders[name]).eval()(**inputs)
    expected = processor.post_process_depth_estimation(outputs, target_sizes=[(40, 70)] * 5)
    for one, other in zip(depth, expected, strict=True):
        torch.testing.assert_close(one, other["predicted_depth"], rtol=1e-5, atol=1e-4)
    assert depth.std() > 1e-2  # the comparison means something


def test_bf16_is_near_and_finer_than_bf16(folders):
    frames = _frames()
    exact = DepthEstimator.load(HYBRID, folders[HYBRID]).estimate(frames, (64, 64))
    near = DepthEstimator.load(HYBRID, folders[HYBRID], precision="bf16").estimate(frames, (64, 64))
    assert near.dtype == torch.float32
    assert (near - exact).abs().max() < 0.1 * (exact.max() - exact.min())
    assert len(near.unique()) > 4 * len(near.bfloat16().unique())


def test_the_hash_is_of_the_files_content(folders, hybrid):
    content = (folders[HYBRID] / "model.safetensors").read_bytes()
    estimator = DepthEstimator.load(HYBRID, hybrid)
    assert (estimator.name, estimator.weights_hash) == (HYBRID, hashlib.sha256(content).hexdigest()[:16])
    weights = load_file(hybrid / "model.safetensors")
    save_file(weights | {"head.head.4.bias": torch.zeros(1)}, hybrid / "model.safetensors", {"format": "pt"})
    assert find_weights(HYBRID, hybrid).hash != estimator.weights_hash


def test_pickled_weights_give_the_same(folders, hybrid):
    torch.save(load_file(hybrid / "model.safetensors"), hybrid / "pytorch_model.bin")
    (hybrid / "model.safetensors").unlink()
    exact, same = (DepthEstimator.load(HYBRID, folder) for folder in (folders[HYBRID], hybrid))
    torch.testing.assert_close(
        same.estimate(_frames(1), (64, 64)), exact.estimate(_frames(1), (64, 64)), rtol=0, atol=0
    )


def test_published_preprocessing_where_the_folder_has_none(hybrid):
    (hybrid / "preprocessor_config.json").unlink()
    assert DepthEstimator.load(HYBRID, hybrid).batch_shape(240, 427) == (384, 384)
    published = {name: DPTImageProcessor(**kind.preprocessing) for name, kind in MODELS.items()}
    blank = torch.zeros(3, 240, 427, dtype=torch.uint8)
    shapes = {
        name: tuple(p(blank, return_tensors="pt")["pixel_values"].shape) for name, p in published.items()
    }
    assert {name: shape for name, shape in shapes.items() if "dpt" in name} == {
        "Intel/dpt-hybrid-midas": (1, 3, 384, 384),
        "Intel/dpt-large": (1, 3, 384, 384),
    }
    assert shapes[ANYTHING] == (1, 3, 294, 518)


def test_a_preprocessor_file_of_the_old_form(hybrid):
    old = {"feature_extractor_type": "DPTFeatureExtractor", "size": 64, "resample": 2, "do_resize": True}
    old |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True}
    new = DepthEstimator.load(HYBRID, hybrid).prepare(_frames(1))
    (hybrid / "preprocessor_config.json").write_text(json.dumps(old))
    torch.testing.assert_close(DepthEstimator.load(HYBRID, hybrid).prepare(_frames(1)), new, rtol=0, atol=0)


def test_weights_that_never_run_may_be_missing(folders, hybrid):
    """Intel's files have none for the first residual layer, which has no input."""
    weights = load_file(hybrid / "model.safetensors")
    kept = {
        key: value for key, value in weights.items() if "fusion_stage.layers.0.residual_layer1" not in key
    }
    assert len(kept) == len(weights) - 4
    save_file(kept, hybrid / "model.safetensors", {"format": "pt"})
    exact, same = (DepthEstimator.load(HYBRID, folder) for folder in (folders[HYBRID], hybrid))
    torch.testing.assert_close(
        same.estimate(_frames(1), (64, 64)), exact.estimate(_frames(1), (64, 64)), rtol=0, atol=0
    )


def test_any_other_missing_weight_is_refused(hybrid):
    weights = load_file(hybrid / "model.safetensors")
    del weights["head.head.4.bias"]
    save_file(weights, hybrid / "model.safetensors", {"format": "pt"})
    assert _refusal(hybrid) == f"{hybrid}: no weights for head.head.4.bias; give a complete file"


def test_what_is_no_model_is_refused_in_a_sentence(folders, hybrid, tmp_path):
    assert "did you mean Intel/dpt-hybrid-midas?" in _refusal(hybrid, "Intel/dpt-hybrid")
    assert "no config.json" in _refusal(tmp_path / "nowhere")
    assert "which depth-anything/Depth-Anything-V2-Small-hf is not" in _refusal(hybrid, ANYTHING)
    weights = load_file(hybrid / "model.safetensors")
    save_file(
        weights | {"head.head.4.weight": torch.zeros(1, 3, 1, 1)},
        hybrid / "model.safetensors",
        {"format": "pt"},
    )
    assert "do not load" in _refusal(hybrid)
    (hybrid / "model.safetensors").write_bytes(b"no weights")
    assert "do not load" in _refusal(hybrid)
    (hybrid / "model.safetensors").unlink()
    assert "no weights; there should be model.safetensors" in _refusal(hybrid)
    (hybrid / "config.json").write_text("{")
    assert "not readable" in _refusal(hybrid)


def test_metric_depth_is_refused(tmp_path):
    """It grows with the distance, so it is no inverse depth."""
    _anything(depth_estimation_type="metric").save_pretrained(tmp_path)
    assert "holds a metric depth_anything model" in _refusal(tmp_path, ANYTHING)


def test_the_hub(folders, tmp_path, monkeypatch):
    """Out of reach it says what helps; a cache made elsewhere is enough."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    sentence = _refusal(None)
    assert re.search(
        r"hf download Intel/dpt-hybrid-midas --local-dir FOLDER.*--weights FOLDER.*HF_HOME", sentence
    )

    cached = tmp_path / "models--Intel--dpt-hybrid-midas"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / ("0" * 40)).symlink_to(folders[HYBRID])
    estimator = DepthEstimator.load(HYBRID)
    assert estimator.weights_hash == find_weights(HYBRID, folders[HYBRID]).hash
