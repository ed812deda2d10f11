import numpy as np
import pytest
import torch

from dear_core import build
from dear_core.data.dataset import EpochBatches
from dear_core.data.frames import CachedSource, VideoSource
from dear_core.errors import InputError


def split(config, name):
    return build.dataset(config, build.manifest(config.data), name)


def test_a_sample_depends_on_seed_epoch_and_index_alone(tiny_config):
    config = tiny_config.replace({"model.branches": ["rgb:side4video", "depth:side4video"]})
    one, two = split(config, "train"), split(config, "train")
    torch.manual_seed(1)
    first = one[1, 3]
    torch.manual_seed(2)
    two[1, 5]
    again = two[1, 3]
    assert first["label"] == again["label"]
    for modality in ("rgb", "depth"):
        assert torch.equal(first["clip"][modality], again["clip"][modality])
    assert not torch.equal(first["clip"]["rgb"], one[2, 3]["clip"]["rgb"])
    before = torch.random.get_rng_state()
    one[1, 4]
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_cache_gives_the_bytes_of_the_files(tiny_config, tmp_path):
    cached = split(tiny_config.replace({"data.cache_dir": str(tmp_path)}), "validation")
    direct = split(tiny_config.replace({"data.cache_dir": None}), "validation")
    assert isinstance(cached.sources["rgb"], CachedSource) and isinstance(direct.sources["rgb"], VideoSource)
    for index in (0, 4, 9):
        for modality in ("rgb", "depth"):
            a, b = (d[0, index]["clip"][modality] for d in (cached, direct))
            assert torch.equal(a, b)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    assert len(files) == 2
    split(tiny_config.replace({"data.cache_dir": str(tmp_path)}), "validation")
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}


def test_a_flip_takes_the_mirrored_label(tiny_config):
    train = split(tiny_config, "train")
    left, right = (
        train.flip_targets.index(target)
        for target in [t for number, t in enumerate(train.flip_targets) if t != number]
    )
    assert train.flip_targets[left] == right
    index = train.labels.index(left)
    labels = {train[epoch, index]["label"] for epoch in range(12)}
    assert labels == {left, right}


def test_a_depth_video_with_other_frames_is_refused(tiny_config):
    train = split(tiny_config.replace({"data.cache_dir": None}), "train")
    paths = train.sources["depth"].paths
    counts = {}
    for number, path in enumerate(paths):
        train.sources["depth"].read(
            number, lambda n, path=path: counts.setdefault(path, n) and np.zeros(1, int)
        )
    other = next(p for p in paths if counts[p] != counts[paths[0]])
    train.sources["depth"].paths = [other, *paths[1:]]
    with pytest.raises(InputError, match="differ in their number of frames"):
        train[0, 0]


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
