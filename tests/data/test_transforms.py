import torch

from dear_core.data.transforms import MEAN, STD, ClipTransform


def pattern(channels):
    """Frames whose value is their column (0 to 95) in every channel and row: uint8 (2,C,72,96)."""
    return torch.arange(96, dtype=torch.uint8).expand(2, channels, 72, 96).contiguous()


def columns(video_CTHW, channels):
    """Undo the normalisation of channel 0."""
    mean, std = (MEAN[0], STD[0]) if channels == 3 else (sum(MEAN) / 3, sum(STD) / 3)
    return (video_CTHW[0] * std + mean) * 255


def test_one_geometric_draw_for_both_modalities():
    transform = ClipTransform(crop_size=64, train=True, scale=(0.4, 0.9))
    for seed in range(10):
        torch.manual_seed(seed)
        clip = transform({"rgb": pattern(3), "depth": pattern(1)}, flip=seed % 2 == 1)
        assert clip["rgb"].shape == (3, 2, 64, 64) and clip["depth"].shape == (1, 2, 64, 64)
        assert (columns(clip["rgb"], 3) - columns(clip["depth"], 1)).abs().max() < 0.01


def test_a_flip_mirrors():
    transform = ClipTransform(crop_size=64, train=False)
    plain = transform({"rgb": pattern(3)})["rgb"]
    assert torch.equal(transform({"rgb": pattern(3)}, flip=True)["rgb"], plain.flip(-1))


def test_colour_changes_rgb_alone():
    torch.manual_seed(0)
    with_colour = ClipTransform(crop_size=64, train=True, scale=(1, 1), colour_jitter=0.5)
    clip = with_colour({"rgb": pattern(3), "depth": pattern(1)})
    assert (columns(clip["rgb"], 3) - columns(clip["depth"], 1)).abs().max() > 1


def test_depth_of_another_size_is_brought_to_rgbs():
    clip = ClipTransform(crop_size=64, train=False)(
        {"rgb": pattern(3), "depth": pattern(1)[..., :90].contiguous()}
    )
    assert clip["depth"].shape == (1, 2, 64, 64)


def test_validation_is_deterministic_and_normalised():
    transform = ClipTransform(crop_size=64, train=False)
    first, second = transform({"rgb": pattern(3)}), transform({"rgb": pattern(3)})
    assert torch.equal(first["rgb"], second["rgb"])
    assert columns(first["rgb"], 3)[0, 0, 0].round() == 16  # the centre crop starts at column 16
