"""Clips as the network gets them: what moves, what does not, and against torchvision and timm."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import v2

from dear_core.data.rand_augment import ARGUMENTS, GEOMETRIC
from dear_core.data.transforms import FILL, MEAN, STD, Box, ClipTransform, view

TIMMS = {"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As a loader's worker has it; threads for such small clips only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pattern(height, width, channels):
    """A place as grey levels: frames of x and y (0 to 250 across the frame) and two of 255, as decoded."""
    x = torch.arange(width).add(0.5).mul(250 / width).expand(height, width)
    y = torch.arange(height).add(0.5).mul(250 / height)[:, None].expand(height, width)
    white = torch.full((height, width), 255.0)
    frames_THW = torch.stack([x, y, white, white]).round().byte()
    return frames_THW[..., None].repeat(1, 1, 1, channels).permute(0, 3, 1, 2)


def levels(video_CTHW):
    """The grey levels again, of channel 0."""
    mean, std = (MEAN[0], STD[0]) if len(video_CTHW) == 3 else (sum(MEAN) / 3, sum(STD) / 3)
    return (video_CTHW[0] * std + mean) * 255


def apart(clip):
    """Grey levels between RGB's and depth's places where both see the frame: at most, and on average."""
    rgb, depth = levels(clip["rgb"]), levels(clip["depth"])
    inside = (rgb[2] > 254.5) & (depth[2] > 254.5)
    assert inside.float().mean() > 0.2
    difference = (rgb[:2] - depth[:2])[:, inside]
    return difference.abs().max().item(), difference.mean(1).abs().max().item()


@pytest.fixture(scope="module")
def picture():
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return Image.open(file).convert("RGB").resize((200, 120))


def as_clip(picture, frames=1):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).expand(frames, -1, -1, -1)


def make(train=False, crop_size=64, short_side=72, **options):
    return ClipTransform(crop_size=crop_size, short_side=short_side, train=train, **options)


SIZES = {"same size": (240, 427), "half": (120, 214), "short side 256": (256, 456)}
DRAWS = [[], *([(name, ARGUMENTS[name](7, sign))] for name in sorted(GEOMETRIC) for sign in (1, -1))]
DRAWS += [[("Rotate", 20.0), ("ShearX", 0.2), ("TranslateY", -0.2)]]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("draw", DRAWS, ids=str)
def test_rgb_and_depth_move_alike(draw, flip):
    box = Box(0.11, 0.23, 0.77, 0.5)
    for what, size in SIZES.items():
        clip = view({"rgb": pattern(240, 427, 3), "depth": pattern(*size, 1)}, box, 112, flip=flip, draw=draw)
        most, mean = apart(clip)
        # One level is a pixel of 240 rows. Levels are rounded before and after. A plain crop begins and ends
        # at the nearest pixel, a warp does not.
        if what == "same size":
            assert most < 0.01
        else:
            assert (most < 2.1 and mean < 0.2) if draw else (most < 3.1 and mean < 1.2), what


@pytest.mark.parametrize("depth_size", [(240, 427), (120, 214)])
@pytest.mark.parametrize("rand_augment", [None, "rand-m7-n4-mstd0.5-p1-inc1"])
def test_random_draws_move_rgb_and_depth_alike(depth_size, rand_augment):
    rgb, depth = pattern(240, 427, 3), pattern(*depth_size, 1)
    transform = make(train=True, crop_size=112, short_side=128, rand_augment=rand_augment)
    if rand_augment:  # colour would change RGB's places
        draw = transform.rand_augment.draw
        only = lambda: [operation for operation in draw() if operation[0] in GEOMETRIC]  # noqa: E731
        transform.rand_augment = type("Geometry", (), {"draw": staticmethod(only)})
    for seed in range(12):
        torch.manual_seed(seed)
        most, mean = apart(transform({"rgb": rgb, "depth": depth}, flip=seed % 2 == 1))
        assert (most < 0.01) if depth_size == (240, 427) else (most < 3.1 and mean < 1.2)


def test_places_are_where_the_box_says():
    box = Box(0.25, 0.5, 0.5, 0.25)
    x, y = levels(view({"rgb": pattern(240, 400, 3)}, box, 100)["rgb"])[:2]
    assert x[0, [0, 99]].tolist() == pytest.approx([0.50125 * 250, 0.74875 * 250], abs=1)
    assert y[[0, 99], 0].tolist() == pytest.approx([0.2525 * 250, 0.7475 * 250], abs=1)


@pytest.mark.parametrize("draw", [[], [("Rotate", 15.0)]], ids=str)
def test_a_flip_mirrors_the_result(draw, picture):
    clip, box = {"rgb": as_clip(picture), "depth": as_clip(picture)[:, :1]}, Box(0.1, 0.1, 0.8, 0.6)
    plain, mirrored = view(clip, box, 64, draw=draw), view(clip, box, 64, draw=draw, flip=True)
    for name in clip:
        assert (mirrored[name].flip(-1) - plain[name]).abs().max() < 0.02  # one grey level, by rounding


@pytest.mark.parametrize(
    "draw", [draw for draw in DRAWS if len(draw) == 1] + [[("ShearY", -0.2), ("Rotate", 12.0)]], ids=str
)
def test_geometric_operations_look_like_timms(draw, picture):
    """The same crop of the same operations, timm's one after the other; the picture is not square."""
    theirs = picture
    for name, amount in draw:
        operation = auto_augment.NAME_TO_OP[TIMMS.get(name, name)]
        theirs = operation(theirs, amount, fillcolor=(128,) * 3, resample=Image.Resampling.BILINEAR)
    theirs = torch.from_numpy(np.array(theirs.crop((70, 10, 170, 110)))).permute(2, 0, 1).float()[0]
    ours = levels(
        view({"rgb": as_clip(picture)}, Box(10 / 120, 70 / 200, 100 / 120, 0.5), 100, draw=draw)["rgb"]
    )
    difference = (ours[0] - theirs).abs()
    # timm resamples twice for two operations and PIL cuts at the frame's edge what is blended here.
    assert difference.mean() < (0.75 if len(draw) == 1 else 3) and difference.median() <= 1


def test_outside_the_frame_is_grey_for_rgb_and_far_for_depth():
    clip = {"rgb": pattern(60, 80, 3), "depth": pattern(60, 80, 1)}
    for amount in (0.45, 2.0):  # partly and wholly outside
        seen = view(clip, Box(0, 0, 1, 1), 32, draw=[("TranslateX", amount)])
        for name in clip:
            assert torch.allclose(levels(seen[name])[..., -8:], torch.tensor(float(FILL[name])), atol=1e-3)


def test_large_frames_are_antialiased_before_a_warp():
    stripes = torch.arange(640).remainder(2).mul(255).byte().expand(1, 3, 640, 640)
    seen = levels(view({"rgb": stripes}, Box(0.1, 0.1, 0.8, 0.8), 64, draw=[("TranslateX", 0.03)])["rgb"])
    assert (seen - 127.5).abs().max() < 8


def test_colour_changes_rgb_alone(picture):
    clip = {"rgb": as_clip(picture, 4), "depth": as_clip(picture, 4)[:, :1]}
    plain = view(clip, Box(0, 0, 1, 0.6), 64)
    for name in ARGUMENTS.keys() - GEOMETRIC:
        draw = [(name, ARGUMENTS[name] and ARGUMENTS[name](7, -1))]
        seen = view(clip, Box(0, 0, 1, 0.6), 64, draw=draw)
        assert torch.equal(seen["depth"], plain["depth"])
        assert not torch.equal(seen["rgb"], plain["rgb"]), name
    torch.manual_seed(0)
    seen = make(train=True, scale=(1, 1), colour_jitter=0.5)(clip)
    torch.manual_seed(0)
    plain = make(train=True, scale=(1, 1))(clip)
    assert torch.equal(seen["depth"], plain["depth"]) and (seen["rgb"] - plain["rgb"]).abs().max() > 0.1


@pytest.mark.parametrize("options", [{}, {"rand_augment": "rand-m7-n4-mstd0.5-inc1", "colour_jitter": 0.3}])
def test_a_seed_repeats_its_clip_and_input_stays(options, picture):
    transform = make(train=True, **options)
    clip = {"rgb": as_clip(picture, 2).clone(), "depth": as_clip(picture, 2)[:, :1].clone()}
    different = set()
    for seed in range(12):
        made = []
        for _ in range(2):
            torch.manual_seed(seed)
            made.append(transform(clip))
        for name, channels in (("rgb", 3), ("depth", 1)):
            assert torch.equal(made[0][name], made[1][name])
            assert made[0][name].shape == (channels, 2, 64, 64) and made[0][name].is_contiguous()
            assert made[0][name].dtype == torch.float32
        different.add(made[0]["rgb"].sum().item())
    assert len(different) >= 10  # torchvision's crop is the centre where no drawn box fits
    assert torch.equal(clip["rgb"], as_clip(picture, 2))


def test_rand_augment_is_refused_at_once_when_not_understood():
    with pytest.raises(ValueError, match="'rand-x' should look like"):
        make(train=True, rand_augment="rand-x")


def test_training_crops_have_the_asked_share_of_the_area():
    for seed in range(40):
        torch.manual_seed(seed)
        x, y = levels(make(train=True, scale=(0.3, 0.5))({"rgb": pattern(120, 160, 3)})["rgb"])[:2] / 250
        share = (x.max() - x.min()).item() * (y.max() - y.min()).item() * (64 / 63) ** 2
        assert 0.27 < share < 0.53


@pytest.mark.parametrize("size", [(240, 427), (427, 240), (120, 200), (72, 72), (256, 455), (40, 70)])
def test_evaluation_is_resize_then_centre_crop(size):
    clip = pattern(*size, 3)
    resized = v2.functional.resize(clip, [72], antialias=True)
    expected = v2.functional.center_crop(resized, [64, 64])[:, 0]
    difference = (levels(make()({"rgb": clip})["rgb"]) - expected)[:2].abs()
    # The box begins and ends at the nearest pixel of the video; levels are rounded three times.
    assert difference.mean() < 0.5 * 250 / min(size) + 0.5 and difference.max() < 250 / min(size) + 2


def test_evaluation_looks_like_resize_then_centre_crop(picture):
    clip = as_clip(picture.resize((360, 240)))  # the centre crop begins at a whole pixel, before and after
    resized = v2.functional.resize(clip, [256], antialias=True)
    expected = v2.functional.center_crop(resized, [224, 224])[:, 0]
    difference = (levels(make(crop_size=224, short_side=256)({"rgb": clip})["rgb"]) - expected).abs()
    assert difference.median() < 0.01 and difference.mean() < 0.5


def test_frames_of_the_asked_size_are_only_cut():
    clip = pattern(256, 455, 3)
    seen = levels(make(crop_size=224, short_side=256)({"rgb": clip})["rgb"])
    assert torch.allclose(seen, v2.functional.center_crop(clip, [224, 224])[:, 0].float(), atol=1e-3)


def test_normalisation_is_clips():
    clip = {"rgb": pattern(64, 64, 3)}
    expected = v2.functional.normalize(clip["rgb"] / 255, list(MEAN), list(STD)).transpose(0, 1)
    box = Box(0, 0, 1, 1)
    assert torch.allclose(view(clip, box, 64)["rgb"], expected, atol=1e-5)
    by_table = view(clip, box, 64, draw=[("Invert", None), ("Invert", None)])["rgb"]
    assert torch.allclose(by_table, expected, atol=1e-5)


@pytest.mark.parametrize("size, axis", [((120, 200), 0), ((200, 120), 1)])
def test_three_crops_lie_along_the_longer_side(size, axis):
    clip = {"rgb": pattern(*size, 3), "depth": pattern(*size, 1)}
    views = make().crops(clip, 3)
    for place, seen in zip((0.0, 0.2, 0.4), views, strict=True):
        along, across = levels(seen["rgb"])[axis], levels(seen["rgb"])[1 - axis]
        assert along.min().item() == pytest.approx(place * 250, abs=3)
        assert along.max().item() == pytest.approx((place + 0.6) * 250, abs=3)
        assert across.min() < 3 and across.max() > 247  # as high as the video
        assert max(apart(seen)) < 0.01
    assert torch.equal(make().crops(clip, 1)[0]["rgb"], make()(clip)["rgb"])


@pytest.mark.parametrize("draw", [[], [("ShearX", 0.0)]], ids=str)
@pytest.mark.parametrize("size", [(72, 128), (160, 72)])
def test_depth_of_another_shape_keeps_its_proportions(size, draw):
    middle = v2.functional.center_crop(pattern(*size, 1), [72, 96] if size == (72, 128) else [54, 72])
    rgb, box = pattern(72, 96, 3), Box(0.1, 0.2, 0.8, 0.6)
    seen = view({"rgb": rgb, "depth": pattern(*size, 1)}, box, 64, draw=draw)
    assert torch.equal(seen["depth"], view({"rgb": rgb, "depth": middle}, box, 64, draw=draw)["depth"])


def test_small_videos_are_enlarged():
    clip = {"rgb": pattern(30, 40, 3), "depth": pattern(30, 40, 1)}
    torch.manual_seed(0)
    transform = make(train=True, rand_augment="rand-m7-n4-p1-inc1")
    for seen in (make()(clip), *make().crops(clip, 3), transform(clip)):
        assert seen["rgb"].shape == (3, 4, 64, 64) and seen["depth"].shape == (1, 4, 64, 64)


def test_frames_in_another_memory_layout_give_the_same():
    clip = pattern(120, 160, 3)
    box = Box(0.1, 0.1, 0.8, 0.7)
    assert torch.equal(view({"rgb": clip.contiguous()}, box, 64)["rgb"], view({"rgb": clip}, box, 64)["rgb"])
