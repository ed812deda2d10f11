"""RandAugment against timm, on a real picture (matplotlib's sample)."""

import matplotlib.cbook
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms.v2 import functional as F

from dear_core.data.rand_augment import ARGUMENTS, EXAMPLE, GEOMETRIC, RandAugment, colour, geometry, look_up

COLOUR = [name for name in ARGUMENTS if name not in GEOMETRIC]


def in_timm(name):
    """timm's name of one of our operations, in its increasing set."""
    found = [other for other in (name, f"{name}Increasing", f"{name}Rel") if other in timm_set()]
    assert len(found) == 1, name
    return found[0]


def timm_set():
    return auto_augment.rand_augment_choices("", increasing=True)


@pytest.fixture(scope="module")
def pictures():
    """Two different frames of 96 by 128: a photograph, and a part of it with little contrast."""
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB")
    part = picture.crop((100, 50, 420, 290)).resize((128, 96))
    return [picture.resize((128, 96)), part.point([40 + value // 3 for value in range(256)] * 3)]


def as_tensor(pictures):
    """uint8 (C,T,H,W)."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(3, 0, 1, 2)


def applied(pictures, draw):
    frames, table = colour(as_tensor(pictures).contiguous(), draw)
    return frames if table is None else look_up(frames, table.to(torch.uint8))


def far(ours, theirs):
    return (ours.int() - theirs.int()).abs().max().item()


def test_the_operations_are_timms():
    assert [in_timm(name) for name in ARGUMENTS] == timm_set()


@pytest.mark.parametrize("level", [0, 3.3, 7, 10])
@pytest.mark.parametrize("name", list(ARGUMENTS))
def test_levels_mean_what_they_mean_in_timm(name, level, monkeypatch):
    theirs = auto_augment.LEVEL_TO_ARG[in_timm(name)]
    if theirs is None:
        assert ARGUMENTS[name] is None
        return
    for sign, drawn in ((1, 0.1), (-1, 0.9)):
        monkeypatch.setattr(auto_augment.random, "random", lambda drawn=drawn: drawn)
        assert ARGUMENTS[name](level, sign) == theirs(level, {})[0]


@pytest.mark.parametrize(
    "name, arguments",
    {
        "Rotate": (0, 21, 30),
        "Posterize": (4, 2, 0),
        "Solarize": (256, 77, 0),
        "SolarizeAdd": (0, 77, 110),
        "Brightness": (1, 1.63, 1.9),
        "ShearX": (0, 0.21, 0.3),
        "TranslateY": (0, 0.315, 0.45),
    }.items(),
)
def test_levels_in_numbers(name, arguments):
    assert [ARGUMENTS[name](level, 1) for level in (0, 7, 10)] == pytest.approx(list(arguments))


@pytest.mark.parametrize("name", COLOUR)
@pytest.mark.parametrize("level, sign", [(7, 1), (7, -1), (9.9, 1), (9.9, -1)])
def test_colour_operations_look_like_timms(name, level, sign, pictures):
    argument = ARGUMENTS[name] and ARGUMENTS[name](level, sign)
    operation = auto_augment.NAME_TO_OP[in_timm(name)]
    arguments = () if argument is None else (argument,)
    theirs = as_tensor([operation(picture, *arguments) for picture in pictures])
    ours = applied(pictures, [(name, argument)])
    assert far(ours, theirs) <= 2  # grey levels; PIL rounds means and greys to whole levels on the way
    assert (ours.float() - theirs.float()).abs().mean() < 0.75


EXACT = {
    "Invert": (None, F.invert),
    "Equalize": (None, F.equalize),
    "Posterize": (2, lambda frames: F.posterize(frames, 2)),
    "Solarize": (77, lambda frames: F.solarize(frames, 77)),
    "Brightness": (1.63, lambda frames: F.adjust_brightness(frames, 1.63)),
    "Color": (0.37, lambda frames: F.adjust_saturation(frames, 0.37)),
    "Sharpness": (1.63, lambda frames: F.adjust_sharpness(frames, 1.63)),
}


@pytest.mark.parametrize("name", EXACT)
def test_colour_operations_are_torchvisions(name, pictures):
    argument, kernel = EXACT[name]
    theirs = kernel(as_tensor(pictures).transpose(0, 1)).transpose(0, 1)
    assert torch.equal(applied(pictures, [(name, argument)]), theirs)


@pytest.mark.parametrize(
    "name, argument, kernel",
    [
        ("AutoContrast", None, F.autocontrast),
        ("Contrast", 1.63, lambda frames: F.adjust_contrast(frames, 1.63)),
        ("Contrast", 0.37, lambda frames: F.adjust_contrast(frames, 0.37)),
    ],
)
def test_contrasts_are_torchvisions_but_for_rounding(name, argument, kernel, pictures):
    theirs = kernel(as_tensor(pictures).transpose(0, 1)).transpose(0, 1)
    assert far(applied(pictures, [(name, argument)]), theirs) <= 1


def test_one_table_for_many_operations(pictures):
    draw = [(name, EXACT[name][0]) for name in ("Brightness", "Equalize", "Solarize", "Invert", "Color")]
    draw += [("Posterize", 2), ("Equalize", None)]
    expected = as_tensor(pictures).transpose(0, 1)
    for name, _ in draw:
        expected = EXACT[name][1](expected)
    assert torch.equal(applied(pictures, draw), expected.transpose(0, 1))
    frames, table = colour(as_tensor(pictures).contiguous(), draw[:4])
    assert torch.equal(frames, as_tensor(pictures)) and table.shape == (3, 2, 256)


def test_frames_of_one_grey_level_stay():
    flat = torch.full((3, 2, 8, 8), 90, dtype=torch.uint8)
    for name in ("AutoContrast", "Equalize", "Contrast"):
        frames, table = colour(flat, [(name, 1.5)])
        assert far(look_up(frames, table), flat) <= 1


def test_geometry_leaves_colour_and_colour_geometry():
    draw = [("Invert", None), ("Color", 0.5)]
    assert geometry(draw, 1.5) is None and geometry([], 1.5) is None
    frames = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    assert colour(frames, [("Rotate", 10.0)]) == (frames, None)


def test_geometry_joins_the_operations_in_their_order():
    first, second = ("Rotate", 20.0), ("TranslateX", 0.3)
    joint = geometry([first, ("Invert", None), second], 1.5)
    assert np.allclose(joint, geometry([first], 1.5) @ geometry([second], 1.5))
    # As timm: the result's place is looked for 0.3 to the right, then turned about the centre.
    assert np.allclose(joint @ [0.2, 0.5, 1], [0.5, 0.5, 1])
    # A quarter turn to the left, on a frame three wide and two high: the top edge comes from the right.
    assert np.allclose(geometry([("Rotate", 90.0)], 1.5) @ [0.5, 0, 1], [0.5 + 1 / 3, 0.5, 1])


def test_parsing():
    assert RandAugment.parse(EXAMPLE) == RandAugment(7, 4, 0.5, 0.5)
    assert RandAugment.parse("rand-inc1-n3-p1-m9") == RandAugment(9, 3, 1.0, 0.0)
    assert RandAugment.parse("rand-inc1") == RandAugment(10, 2, 0.5, 0.0)  # timm's defaults


@pytest.mark.parametrize(
    "text",
    [
        *("", "rand", "augmix-m3-inc1", "rand-m7-n4-mstd0.5", "rand-m7-n4-inc0", "rand-m7-m8-inc1"),
        *("rand-m7.5-inc1", "rand-m11-inc1", "rand-n0-inc1", "rand-p2-inc1", "rand-mstd101-inc1"),
        *("rand-m7-inc1-tweights", "rand-m7-inc1-mmax20", "rand-m-inc1", "rand--inc1", " rand-inc1"),
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=f"should look like {EXAMPLE}"):
        RandAugment.parse(text)


def test_draws_follow_the_string():
    torch.manual_seed(0)
    draws = [RandAugment.parse(EXAMPLE).draw() for _ in range(4000)]
    drawn = [operation for draw in draws for operation in draw]
    assert max(len(draw) for draw in draws) == 4 and abs(len(drawn) / 8000 - 1) < 0.03  # n 4, p 0.5
    names, counts = np.unique([name for name, _ in drawn], return_counts=True)
    assert set(names) == set(ARGUMENTS) and counts.min() > 420 and counts.max() < 650  # 533 expected
    degrees = np.array([amount for name, amount in drawn if name == "Rotate"])
    assert abs((degrees > 0).mean() - 0.5) < 0.1
    assert abs(np.abs(degrees).mean() - 21) < 0.5 and abs(np.abs(degrees).std() - 1.5) < 0.2
    always = RandAugment.parse("rand-m10-n4-p1-mstd3-inc1")
    levels = [abs(amount) for _ in range(500) for name, amount in always.draw() if name == "Rotate"]
    assert max(levels) == 30 and min(levels) >= 0  # cut at level 10


def test_a_seed_repeats_its_draw():
    augment = RandAugment.parse(EXAMPLE)
    torch.manual_seed(5)
    first = [augment.draw() for _ in range(5)]
    torch.manual_seed(5)
    assert first == [augment.draw() for _ in range(5)]
