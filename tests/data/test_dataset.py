"""Samples as pure functions of (seed, epoch, index), views, controls, and clips that cannot be read."""

import numpy as np
import pytest
import torch

from dear_core import build
from dear_core.data.batches import EpochBatches, collate
from dear_core.data.controls import frame_order, other_clips
from dear_core.data.frames import CachedSource, FileSource
from dear_core.errors import InputError

BOTH = {"model.branches": ["rgb:side4video", "depth:side4video"]}


def split(config, name):
    return build.dataset(config, build.manifest(config.data), name)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_config):
    config = tiny_config.replace(BOTH)
    one, two = split(config, "train"), split(config, "train")
    torch.manual_seed(1)
    first = one[1, 3]
    torch.manual_seed(2)
    two[1, 5]
    again = two[1, 3]
    assert first["labels"].shape == (1, 1) and torch.equal(first["labels"], again["labels"])
    assert same(first["samples"][0], again["samples"][0])
    assert first["samples"][0]["rgb"].shape == (3, 8, 64, 64)
    assert first["samples"][0]["depth"].shape == (1, 8, 64, 64)
    assert not same(first["samples"][0], one[2, 3]["samples"][0])
    before = torch.random.get_rng_state()
    one[1, 4]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_cache_gives_what_the_files_give(tiny_config, tmp_path):
    cached = split(tiny_config.replace({**BOTH, "data.cache_dir": str(tmp_path)}), "validation")
    direct = split(tiny_config.replace({**BOTH, "data.cache_dir": None}), "validation")
    assert isinstance(cached.sources["rgb"], CachedSource) and isinstance(direct.sources["rgb"], FileSource)
    for index in (0, 9):
        a, b = (d[0, index]["samples"][0] for d in (cached, direct))
        for modality in ("rgb", "depth"):  # the cache is resized before it is cropped, the files after
            assert (a[modality] - b[modality]).abs().mean() < 0.05
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    assert len(files) == 2
    split(tiny_config.replace({**BOTH, "data.cache_dir": str(tmp_path)}), "validation")
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}


def test_a_flip_takes_the_mirrored_label(tiny_config):
    train = split(tiny_config, "train")
    (targets,) = train.flip_targets
    left, right = (targets.index(t) for t in [t for number, t in enumerate(targets) if t != number])
    assert targets[left] == right
    index = train.labels.index((left,))
    labels = {train[epoch, index]["labels"].item() for epoch in range(12)}
    assert labels == {left, right}


def test_repeated_augmentation_gives_other_samples_of_the_same_frames(tiny_config):
    train = split(tiny_config.replace({"data.repeats": 3, **BOTH}), "train")
    reads = []
    read = train.sources["rgb"].read
    train.sources["rgb"].read = lambda number, pick: reads.append(number) or read(number, pick)
    item = train[1, 4]
    assert len(item["samples"]) == 3 and item["labels"].shape == (3, 1) and reads == [4]
    assert not same(item["samples"][0], item["samples"][1])
    assert same(item["samples"][0], split(tiny_config.replace(BOTH), "train")[1, 4]["samples"][0])
    batch = collate([item, train[1, 5]])
    assert batch["clip"]["rgb"].shape[0] == 6 and batch["labels"].shape == (6, 1)
    assert batch["index"].tolist() == [4, 4, 4, 5, 5, 5] and batch["views"] == 1


def test_views_are_clips_times_crops(tiny_config):
    config = tiny_config.replace({"data.test_clips": 2, "data.test_crops": 3, **BOTH})
    item = split(config, "validation")[0, 0]
    assert item["views"] == 6 and len(item["samples"]) == 6 and item["labels"].shape == (1, 1)
    for a in range(6):
        for b in range(a):
            assert not same(item["samples"][a], item["samples"][b])
    batch = collate([item, split(config, "validation")[0, 1]])
    assert batch["views"] == 6 and batch["clip"]["rgb"].shape[0] == 12 and len(batch["labels"]) == 2
    centre = split(tiny_config.replace({"data.test_crops": 3, **BOTH}), "validation")[0, 0]["samples"][1]
    plain = split(tiny_config.replace(BOTH), "validation")[0, 0]["samples"][0]
    assert centre["rgb"].shape == plain["rgb"].shape


def test_a_depth_video_with_other_frames_is_told(tiny_config):
    train = split(tiny_config.replace({"data.cache_dir": None, **BOTH}), "train")
    media = train.sources["depth"].media
    counts: dict[int, int] = {}
    for number in range(len(media)):
        train.sources["depth"].read(number, lambda n, k=number: counts.setdefault(k, n) and np.zeros(1, int))
    other = next(number for number in counts if counts[number] != counts[0])
    train.sources["depth"].media = [media[other], *media[1:]]
    item = train[0, 0]
    assert "differ in their number of frames" in item["bad"] and not item["samples"]


def test_controls_change_depth_and_leave_colour(tiny_config):
    def clips(control, index=0):
        config = tiny_config.replace({**BOTH, "data.depth": control})
        return split(config, "validation")[0, index]["samples"][0]

    def frames(control, index):
        return split(tiny_config.replace({**BOTH, "data.depth": control}), "validation").frames(index)

    matched = clips("matched")
    for control in ("shuffled", "constant", "time_shuffled"):
        assert torch.equal(clips(control)["rgb"], matched["rgb"])
        assert not torch.equal(clips(control)["depth"], matched["depth"])
        assert clips(control)["depth"].shape == matched["depth"].shape
        assert same(clips(control), clips(control))
    assert clips("constant")["depth"].unique().numel() == 1
    order = torch.from_numpy(frame_order(8, tiny_config.train.seed, 0))
    assert torch.equal(clips("time_shuffled")["depth"], matched["depth"][:, order])
    others = other_clips(10, tiny_config.train.seed)
    for index in (0, 7):
        own_of_other = frames("matched", int(others[index]))["depth"]
        assert np.array_equal(frames("shuffled", index)["depth"], own_of_other)


def test_constant_depth_needs_no_store(tiny_config, tmp_path):
    config = tiny_config.replace({**BOTH, "data.depth": "constant", "data.depth_root": str(tmp_path / "no")})
    assert build.resolve(config).data.depth_store.model is None
    assert split(config, "train")[1, 0]["samples"][0]["depth"].shape == (1, 8, 64, 64)
    with pytest.raises(InputError, match="no depth store"):
        build.resolve(config.replace({"data.depth": "shuffled"}))


def test_a_clip_that_cannot_be_read_is_left_out_and_named(tiny_config, tmp_path):
    train = split(
        tiny_config.replace({"data.cache_dir": None, "model.branches": ["rgb:side4video"]}), "train"
    )
    media = list(train.sources["rgb"].media)
    broken = tmp_path / "broken.webm"
    broken.write_bytes(media[2].path.read_bytes()[:5000])
    media[2] = type(media[2])(broken)
    train.sources["rgb"].media = media
    batch = collate([train[1, number] for number in range(4)])
    assert batch["index"].tolist() == [0, 1, 3] and batch["clip"]["rgb"].shape[0] == 3
    ((number, reason),) = batch["bad"]
    assert number == 2 and "broken.webm" in reason
    nothing = collate([train[1, 2]])
    assert nothing["clip"] == {} and len(nothing["bad"]) == 1 and len(nothing["labels"]) == 0


def test_every_clip_is_validated_exactly_once():
    for world in (1, 2, 3):
        seen = []
        for rank in range(world):
            for batch in EpochBatches(11, 4, shuffle=False, rank=rank, world=world):
                seen += [index for _, index in batch]
        assert sorted(seen) == list(range(11))


def test_a_step_has_the_same_clips_on_any_number_of_workers():
    whole = list(EpochBatches(22, 8, shuffle=True, seed=3))
    halves = [list(EpochBatches(22, 8, shuffle=True, seed=3, rank=rank, world=2)) for rank in (0, 1)]
    assert len(whole) == 2
    for step, batch in enumerate(whole):
        assert sorted(batch) == sorted(halves[0][step] + halves[1][step])


def test_the_order_changes_with_epoch_and_seed():
    batches = EpochBatches(22, 8, shuffle=True, seed=3)
    first = list(batches)
    batches.set_epoch(1)
    assert first != list(batches)
    assert first != list(EpochBatches(22, 8, shuffle=True, seed=4))
