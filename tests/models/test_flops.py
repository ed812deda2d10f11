"""Operation counts equal what one writes down by hand."""

import pytest

from dear_core.models.flops import count, parameters

RGBD = ("rgb:side4video", "depth:videomamba")
SHAPES = {"rgb": (3, 3, 24, 24), "depth": (1, 3, 24, 24)}


def tower_by_hand(frames, width, layers, patches, pixels):
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # q k v out, MLP of 4; scores and values
    return 2 * frames * (layers * block + patches * pixels * width)


def mamba_by_hand(tokens, dim, depth, pixels):
    inner, states, rank = 2 * dim, 16, 2
    direction = inner * (rank + 2 * states) + rank * inner
    products = 2 * tokens * (dim * 2 * inner + 2 * direction + inner * dim)
    scans = 2 * tokens * inner * (9 * states + 2)
    convolutions = 2 * tokens * inner * 2 * 4
    return depth * (products + scans + convolutions) + 2 * (tokens - 1) * pixels * dim


def test_parts_equal_hand_counts_and_sum_to_the_total(make_dear):
    flops = count(make_dear(*RGBD), SHAPES)
    assert flops.by_part["tower"] == tower_by_hand(3, 64, 2, 9, 3 * 64)
    assert flops.by_part["branches.depth:videomamba"] == mamba_by_hand(28, 32, 2, 3 * 64)
    assert flops.total_flops == sum(flops.by_part.values())
    assert set(flops.by_part) == {
        "tower",
        "branches.rgb:side4video",
        "branches.depth:videomamba",
        "streams.rgb:side4video+depth:videomamba",
    }


def test_side_branch_equals_a_hand_count(make_dear):
    flops = count(make_dear("rgb:side4video"), {"rgb": SHAPES["rgb"]})
    patches, dim, width = 9, 64, 64
    linear = (patches + 1) * width * dim
    convolution = patches * (2 * dim**2 + 3 * dim)
    attention = (2 * patches + 2 * (patches + 1)) * dim**2 + 2 * patches * (patches + 1) * dim
    mlp = 8 * patches * dim**2
    stem = patches * 3 * (3 * 64) * dim
    want = 2 * 3 * (stem + 2 * (linear + convolution + attention + mlp))
    assert flops.by_part["branches.rgb:side4video"] == want


def test_counting_leaves_the_model_as_it_was(make_dear, make_clip):
    model = make_dear(*RGBD)
    model.train()
    count(model, SHAPES)
    assert model.training and not model.tower.visual.training
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert not any(module._forward_hooks for module in model.modules())
    assert model(make_clip("rgb", "depth")).isfinite().all()


def test_parameters_tell_the_frozen_ones_apart(make_dear):
    model = make_dear("rgb:side4video")
    total, trainable = parameters(model)
    frozen = sum(weight.numel() for weight in model.tower.parameters())
    assert (total - trainable, trainable > 0) == (frozen, True)


def test_shapes_have_four_entries(make_dear):
    with pytest.raises(ValueError, match=r"must be \(C, T, H, W\)"):
        count(make_dear("rgb:side4video"), {"rgb": (1, 3, 3, 24, 24)})
