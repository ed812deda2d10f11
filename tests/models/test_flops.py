"""Operation counts equal what one writes down by hand, and published ones where there are any."""

import pytest
import torch
from torch.nn import functional as F

from dear_core import build, presets
from dear_core.models import flops
from dear_core.models.flops import count, parameters

RGBD = ("rgb:side4video", "depth:videomamba")
SHAPES = {"rgb": (3, 3, 24, 24), "depth": (1, 3, 24, 24)}
STATES, KERNEL = 16, 4


def tower_by_hand(frames, width, layers, patches, pixels):
    tokens = patches + 1
    block = 12 * tokens * width**2 + 2 * tokens**2 * width  # q k v out, MLP of 4; scores and values
    return 2 * frames * (layers * block + patches * pixels * width)


def mamba_inner_by_hand(tokens, dim, depth, padding=0):
    """Between `in_proj` and `out_proj`, both directions."""
    inner, rank = 2 * dim, -(-dim // 16)
    products = 2 * tokens * 2 * (inner * (rank + 2 * STATES) + rank * inner)
    scans = 2 * tokens * inner * (9 * STATES + 2)
    convolutions = 2 * (tokens + padding) * inner * 2 * KERNEL
    return depth * (products + scans + convolutions)


def mamba_by_hand(tokens, dim, depth, pixels, padding=0):
    inner = 2 * dim
    outer = 2 * tokens * (dim * 2 * inner + inner * dim)
    embedding = 2 * (tokens - 1) * pixels * dim
    return depth * outer + mamba_inner_by_hand(tokens, dim, depth, padding) + embedding


def side_by_hand():
    """The stem, which reads frames, and the rest, of a branch of `make_side` for three frames."""
    patches, dim, width = 9, 64, 64
    linear = (patches + 1) * width * dim
    convolution = patches * (2 * dim**2 + 3 * dim)
    attention = (2 * patches + 2 * (patches + 1)) * dim**2 + 2 * patches * (patches + 1) * dim
    mlp = 8 * patches * dim**2
    stem = patches * 3 * (3 * 64) * dim
    return 2 * 3 * stem, 2 * 3 * 2 * (linear + convolution + attention + mlp)


def weightless(name, branches, changes, classes=presets.SSV2_CLASSES):
    """A preset's model with these branches, and the operations of one clip."""
    keys = {"model.tower.pretrained": None, "model.branches": list(branches), **changes}
    config = presets.by_name(name).replace(keys)
    with flops.without_weights():
        model = build.model(config, classes)
    return model, count(model, build.clip_shapes(config.data, config.model.modalities))


def test_parts_equal_hand_counts_and_sum_to_the_total(make_dear):
    flops = count(make_dear(*RGBD), SHAPES)
    assert flops.by_part["tower"] == tower_by_hand(3, 64, 2, 9, 3 * 64)
    mamba = flops.by_part["branches.depth:videomamba"]  # the convolution may run over its padding too
    assert mamba_by_hand(28, 32, 2, 3 * 64) <= mamba <= mamba_by_hand(28, 32, 2, 3 * 64, KERNEL - 1)
    assert flops.total_flops == sum(flops.by_part.values())
    assert flops.step_flops == flops.total_flops and flops.backward_by_part == {}
    assert set(flops.by_part) == {
        "tower",
        "branches.rgb:side4video",
        "branches.depth:videomamba",
        "streams.rgb:side4video+depth:videomamba",
    }


def test_side_branch_equals_a_hand_count(make_dear):
    flops = count(make_dear("rgb:side4video"), {"rgb": SHAPES["rgb"]})
    assert flops.by_part["branches.rgb:side4video"] == sum(side_by_hand())


def test_attention_is_counted_whichever_kernel_the_device_would_take(make_dear):
    q_MhLd = torch.zeros(2, 4, 10, 16)
    with flops._eval_with_plain_attention(make_dear("rgb:side4video")), flops._Counter() as counter:
        F.scaled_dot_product_attention(q_MhLd, q_MhLd, q_MhLd)
    assert counter.total == 2 * (2 * 4) * (2 * 10 * 10 * 16)


def test_backward_has_two_products_for_each_but_where_the_input_needs_no_gradient(make_dear):
    flops = count(make_dear(*RGBD), SHAPES, backward=True)
    back = flops.backward_by_part
    assert back["tower"] == 0
    stem, rest = side_by_hand()  # the tower's tokens pass a norm that learns, so their layers have both
    assert back["branches.rgb:side4video"] == stem + 2 * rest
    mamba = flops.by_part["branches.depth:videomamba"]
    assert back["branches.depth:videomamba"] == 2 * mamba - 2 * 27 * (3 * 64) * 32
    stream = "streams.rgb:side4video+depth:videomamba"
    assert back[stream] == 2 * flops.by_part[stream]
    assert flops.step_flops == flops.total_flops + sum(back.values())
    assert flops.by_part == count(make_dear(*RGBD), SHAPES).by_part


def test_backward_of_the_parts_is_that_of_the_whole_model(make_dear, make_clip):
    model = make_dear("rgb:side4video", "depth:side4video", "depth:videomamba")
    apart = count(model, SHAPES, backward=True)
    meta = model.to("meta")
    clip = {name: video.to("meta") for name, video in make_clip("rgb", "depth", batch=1).items()}
    with flops._eval_with_plain_attention(meta), flops._Counter() as counter:
        meta(clip).sum().backward()
    assert apart.step_flops == counter.total


def test_a_grouped_convolution_costs_twice_as_much_backwards():
    layer, x = torch.nn.Conv1d(8, 8, 4, groups=8), torch.zeros(2, 8, 20, requires_grad=True)
    with flops._Counter() as counter:
        y = layer(x)
        forward = counter.total
        y.sum().backward()
    assert forward == 2 * 2 * 17 * 8 * 4 and counter.total == 3 * forward


def test_counting_leaves_the_model_as_it_was(make_dear, make_clip):
    model = make_dear(*RGBD)
    model.train()
    count(model, SHAPES, backward=True)
    assert model.training and not model.tower.visual.training
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}
    assert all(weight.grad is None for weight in model.parameters())
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


@pytest.mark.parametrize(
    ("name", "width", "layers", "size"),
    [
        ("ViT-B-32", 768, 12, 224),
        ("ViT-B-16", 768, 12, 224),
        ("ViT-L-14", 1024, 24, 224),
        ("ViT-L-14-336", 1024, 24, 336),
        ("ViT-H-14", 1280, 32, 224),
        ("ViT-B-16-quickgelu", 768, 12, 224),
    ],
)
def test_any_open_clip_vit_is_a_tower_and_takes_no_memory_to_count(name, width, layers, size):
    changes = {"model.tower.name": name, "data.crop_size": size, "data.short_side": size}
    model, flops = weightless("ssv2_vitb16", ["rgb:side4video"], changes)
    tower = model.tower
    assert (tower.width, tower.layers, tower.image_size) == (width, layers, size)
    assert {value.device.type for value in model.state_dict().values()} == {"meta"}
    by_hand = tower_by_hand(8, width, layers, tower.num_patches, 3 * tower.patch_size**2)
    assert flops.by_part["tower"] == by_hand


def test_weights_are_back_after_building_without_them():
    with flops.without_weights():
        assert torch.zeros(1).is_meta and torch.zeros(1).to("cpu").is_meta
    assert torch.zeros(1).device.type == "cpu"


# Published figures. Papers count a multiply-add once, so ours are halved.


@pytest.mark.parametrize(
    ("tower", "side_width", "gflops", "millions"),
    [("vitb16", 320, 528, 21), ("vitl14", 512, 2611, 102), ("vitb16", 128, 445, 4)],
)
def test_side4video_costs_what_its_authors_say(tower, side_width, gflops, millions):
    """HJYao00/Side4Video (5d72352), imgs/memory.png, Table 2: three views of 8 frames, tunable parameters.

    The third line there is a lighter model of unnamed width; 128 is what has its 4 M. The authors'
    counter is not in their repository. Ours is 0.1 to 0.2 % below, as it would be if theirs counts norms.
    """
    changes = {**presets.SIDE4VIDEO[tower], "model.side4video.dim": side_width}
    model, flops = weightless("ssv2_vitb16", ["rgb:side4video"], changes)
    ours = 3 * flops.total_flops / 2 / 1e9
    assert 0 <= gflops - ours < 0.003 * gflops
    assert round(parameters(model)[1] / 1e6) == millions


def test_side4video_has_21_million_weights_without_its_head():
    model, _ = weightless("ssv2_vitb16", ["rgb:side4video"], {})
    assert round(parameters(model.branches)[1] / 1e6, 2) == 21.06


@pytest.mark.parametrize(
    ("size", "gflops", "millions"), [("tiny", 1.1, 7), ("small", 4.3, 26), ("middle", 12.7, 74)]
)
def test_videomamba_costs_what_its_authors_say(size, gflops, millions):
    """OpenGVLab/VideoMamba (f3427e4), videomamba/image_sm/MODEL_ZOO.md: one image, 1000 classes.

    They count with fvcore, which does not see into the fused Mamba kernel (mamba/mamba_ssm/modules/
    mamba_simple.py: `mamba_inner_fn_no_out_proj`). Without what lies in there, ours are theirs to the
    digits that they print; with it, ours are 1.27 times as much for S.
    """
    changes = {**presets.VIDEOMAMBA[size], "data.num_frames": 1}
    model, flops = weightless("ssv2_vitb16", ["rgb:videomamba"], changes, classes=1000)
    config = presets.VIDEOMAMBA[size]
    dim, depth = config["model.videomamba.embed_dim"], config["model.videomamba.depth"]
    seen = flops.total_flops - mamba_inner_by_hand(197, dim, depth)
    norms = 5 * 197 * dim * (depth + 1)  # fvcore: 5 operations for each value of a norm
    assert round(seen / 2 / 1e9 + norms / 1e9, 1) == gflops
    assert round(parameters(model)[1] / 1e6) == millions


def test_videomamba_small_has_25_million_weights_for_174_classes():
    model, _ = weightless("ssv2_vitb16", ["depth:videomamba"], {})
    assert round(parameters(model)[1] / 1e6, 2) == 25.48
