"""The frozen tower: its taps are the blocks' outputs, it never learns, its seed decides it."""

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from torch import nn

from dear_core.models import FrozenTower, build_tower, random_tower, tower_hash

SMALL = {"width": 64, "layers": 3, "heads": 2, "patch_size": 8, "image_size": 24}


@pytest.mark.parametrize("activation", [QuickGELU, nn.GELU])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_taps_are_the_outputs_of_open_clips_blocks(activation, layer_scale):
    torch.manual_seed(0)
    visual = VisionTransformer(
        image_size=24, patch_size=8, width=64, layers=3, heads=2, mlp_ratio=4.0, output_dim=8,
        act_layer=activation, ls_init_value=layer_scale,
    ).eval()  # fmt: skip
    frames = torch.randn(4, 3, 24, 24)
    with torch.no_grad():
        x = visual._embeds(frames)
        want = [x := block(x) for block in visual.transformer.resblocks]
    taps = FrozenTower(visual, name="small")(frames)
    assert [tuple(tap.shape) for tap in taps] == [(4, 10, 64)] * 3
    for tap, right in zip(taps, want, strict=True):
        torch.testing.assert_close(tap, right, atol=1e-6, rtol=1e-5)


def test_blocks_of_another_kind_run_as_they_are():
    """open_clip has towers with attention of its own; those blocks are called, not rewritten."""
    visual = VisionTransformer(
        image_size=24, patch_size=8, width=64, layers=2, heads=2, mlp_ratio=4.0, output_dim=8,
        block_type="custom", qk_norm=True,
    ).eval()  # fmt: skip
    seen = []
    for block in visual.transformer.resblocks:
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    taps = FrozenTower(visual, name="custom")(torch.randn(2, 3, 24, 24))
    assert len(seen) == 2
    assert all(map(torch.equal, taps, seen))


def test_keeps_its_own_precision_under_autocast(tower):
    frames = torch.randn(2, 3, 24, 24)
    want = tower(frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert all(map(torch.equal, tower(frames), want))
    low = tower.to(torch.bfloat16)(frames)
    assert {tap.dtype for tap in low} == {torch.bfloat16}
    for tap, right in zip(low, want, strict=True):
        assert (tap.float() - right).norm() < 2e-2 * right.norm()


def test_stays_frozen_and_in_eval_mode(tower):
    tower.train()
    assert not any(module.training for module in tower.modules())
    assert not any(weight.requires_grad for weight in tower.parameters())
    frames = torch.randn(1, 3, 24, 24, requires_grad=True)
    assert not any(tap.requires_grad for tap in tower(frames))


def test_seed_decides_the_weights_whatever_the_global_state():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = random_tower(**SMALL, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = random_tower(**SMALL, seed=5), random_tower(**SMALL, seed=6)
    assert tower_hash(one) == tower_hash(again)
    assert tower_hash(one) != tower_hash(other)
    assert len(tower_hash(one)) == 64


def test_hash_sees_one_changed_weight(tower):
    before = tower_hash(tower)
    tower.visual.conv1.weight[0, 0, 0, 0] += 1e-3
    assert tower_hash(tower) != before


def test_random_taps_are_well_scaled_and_differ_over_patches_and_frames():
    tower = random_tower(width=128, layers=4, heads=2, patch_size=16, image_size=64, seed=0)
    frames = nn.functional.interpolate(torch.randn(8, 3, 8, 8), 64, mode="bilinear")
    for tap in tower(frames):
        patches = tap[:, 1:]
        assert 0.5 < patches.std() < 2
        assert patches.std(dim=0).mean() > 0.3
        assert patches.std(dim=1).mean() > 0.3


def test_builds_a_named_tower_for_another_image_size():
    tower = build_tower("ViT-S-32-alt", image_size=64)
    assert (tower.width, tower.patch_size, tower.num_patches) == (384, 32, 4)
    assert not any(isinstance(module, QuickGELU) for module in tower.modules())
    assert tower(torch.randn(1, 3, 64, 64))[-1].shape == (1, 5, 384)


def test_reads_a_checkpoint_file_with_the_activation_it_is_told(tmp_path):
    model = open_clip.create_model("ViT-S-32-alt")
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    tower = build_tower("ViT-S-32-alt", pretrained=str(path), quick_gelu=True)
    assert torch.equal(tower.visual.conv1.weight, model.visual.conv1.weight)
    assert sum(isinstance(module, QuickGELU) for module in tower.modules()) == tower.layers


def test_bad_arguments_are_refused(tower):
    with pytest.raises(ValueError, match="knows no model"):
        build_tower("ViT-Z-1")
    with pytest.raises(ValueError, match="neither a file nor a tag"):
        build_tower("ViT-B-16", pretrained="no-such-tag")
    with pytest.raises(ValueError, match="heads=5 must divide"):
        random_tower(**SMALL | {"heads": 5}, seed=0)
    with pytest.raises(ValueError, match="VisionTransformer"):
        FrozenTower(nn.Linear(1, 1), name="x")
    with pytest.raises(ValueError, match=r"reads frames of shape \[M, 3, 24, 24\]"):
        tower(torch.randn(1, 1, 24, 24))
