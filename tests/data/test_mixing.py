import pytest
import torch

from dear_core.data.mixing import Mixing


def batch(size=6):
    """A batch whose every value is its sample's number, and targets of two heads, 8 and 10 classes."""
    rgb = torch.arange(float(size)).view(-1, 1, 1, 1, 1).expand(size, 3, 2, 16, 16).contiguous()
    numbers = torch.arange(size)
    heads = [torch.nn.functional.one_hot(numbers, classes).float() for classes in (8, 10)]
    return {"rgb": rgb, "depth": rgb[:, :1].clone()}, torch.cat(heads, 1)


def test_off_changes_nothing():
    clip, targets = batch()
    mixed, mixed_targets = Mixing(mixup=0, cutmix=0)(clip, targets)
    assert mixed is clip and mixed_targets is targets


@pytest.mark.parametrize("alphas", [{"mixup": 0.8, "cutmix": 0}, {"mixup": 0, "cutmix": 1.0}])
def test_one_draw_for_modalities_and_targets(alphas):
    mixing = Mixing(**alphas)
    for seed in range(10):
        torch.manual_seed(seed)
        clip, targets = batch()
        mixed, mixed_targets = mixing(clip, targets)
        assert torch.equal(mixed["rgb"][:, :1], mixed["depth"])
        assert torch.allclose(mixed_targets.sum(1), torch.tensor(2.0))
        assert torch.allclose(mixed_targets[:, :6], mixed_targets[:, 8:14])  # both heads alike
        # A sample's mean tells how much of the partner is in it, and so must its targets.
        expected = mixed_targets[:, :8] @ torch.arange(8.0)
        assert torch.allclose(mixed["rgb"].mean((1, 2, 3, 4)), expected, atol=1e-4)
        untouched, _ = batch()
        assert torch.equal(clip["rgb"], untouched["rgb"])


def test_cutmix_pastes_one_box_into_every_frame():
    torch.manual_seed(3)
    mixed = Mixing(mixup=0, cutmix=1.0)(*batch())[0]["rgb"]
    own = mixed == torch.arange(6.0).view(-1, 1, 1, 1, 1)
    assert torch.equal(own, own[:1, :1, :1].expand_as(own)) and 0 < own.float().mean() < 1
    rows, columns = (~own[0, 0, 0]).any(1), (~own[0, 0, 0]).any(0)
    assert torch.equal(~own[0, 0, 0], rows[:, None] & columns)  # a rectangle


@pytest.mark.parametrize("size", [2, 3, 8])
def test_nobody_is_mixed_with_itself(size):
    mixing = Mixing(mixup=5.0, cutmix=0)
    for seed in range(10):
        torch.manual_seed(seed)
        targets = mixing(*batch(size))[1][:, :8]
        assert ((targets > 0).sum(1) == 2).all() and ((targets > 0).sum(0)[:size] == 2).all()


def test_one_sample_alone_stays():
    clip, targets = batch(1)
    mixed, mixed_targets = Mixing(mixup=0.8, cutmix=1.0)(clip, targets)
    assert torch.equal(mixed["rgb"], clip["rgb"]) and torch.equal(mixed_targets, targets)


def test_both_take_turns_evenly_and_a_seed_repeats_them():
    mixing, boxes = Mixing(mixup=0.8, cutmix=1.0), 0
    for seed in range(200):
        torch.manual_seed(seed)
        mixed = mixing(*batch())[0]["rgb"]
        boxes += bool((mixed == mixed.round()).all())
        if seed < 5:
            torch.manual_seed(seed)
            assert torch.equal(mixing(*batch())[0]["rgb"], mixed)
    assert 70 < boxes < 130


def test_half_precision_keeps_its_type():
    clip, targets = batch()
    mixed, _ = Mixing(mixup=0.8, cutmix=0)({"rgb": clip["rgb"].bfloat16()}, targets)
    assert mixed["rgb"].dtype == torch.bfloat16
