import numpy as np
import pytest

from dear_core.data.sampling import FrameSampler, segment_indices

SAMPLERS = [
    FrameSampler("segments", 8),
    FrameSampler("stride", 8),
    FrameSampler("stride", 8, stride=4),
    FrameSampler("dense", 8, dense_window=32),
    FrameSampler("dense", 8, dense_window=5),
]
EDGE = np.nextafter(1, 0)


def name(sampler):
    return f"{sampler.kind}-{sampler.stride or sampler.dense_window}"


def draws(count, num_frames=8):
    return np.random.default_rng(0).random((count, num_frames))


def test_validation_takes_the_centre_of_each_segment():
    assert segment_indices(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


def test_an_exact_fit_takes_every_frame():
    assert segment_indices(8, 8).tolist() == list(range(8))
    for stride in (1, None):
        sampler = FrameSampler("stride", 8, stride=stride)
        assert sampler.test(8).tolist() == [list(range(8))] == [sampler.train(8, draws(1)[0]).tolist()]
    assert FrameSampler("dense", 8, dense_window=8).test(8).tolist() == [list(range(8))]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
@pytest.mark.parametrize("length", [1, 2, 5, 7, 8, 9, 31, 32, 33, 60])
def test_always_in_range_and_in_order(sampler, length):
    made = [sampler.train(length, place) for place in (np.zeros(8), np.full(8, EDGE), *draws(5))]
    for clips in (1, 2, 3, 10):
        tested = sampler.test(length, clips)
        assert tested.shape == (clips, 8)
        assert np.array_equal(tested, sampler.test(length, clips))
        made.extend(tested)
    wraps = sampler.kind == "dense" and length < max(sampler.dense_window, 8)
    for indices in made:
        assert indices.shape == (8,) and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < length
        assert wraps or (np.diff(indices) >= 0).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
def test_one_frame_repeats(sampler):
    assert sampler.test(1, 2).tolist() == [[0] * 8] * 2
    assert sampler.train(1, draws(1)[0]).tolist() == [0] * 8


def test_training_stays_within_its_segment_and_covers_it():
    sampler = FrameSampler("segments", 8)
    made = np.stack([sampler.train(80, place) for place in draws(2000)])
    assert (made // 10 == np.arange(8)).all()
    counts = np.bincount(made.ravel(), minlength=80)
    assert counts.min() > 150 and counts.max() < 250  # 200 expected, standard deviation 13


def test_clips_of_segments_are_offsets_within_them():
    # Side4Video (test_clips 3): a quarter, a half and three quarters of each segment.
    first, second, third = FrameSampler("segments", 8).test(80, 3).tolist()
    assert first == [int(10 * i + 2.5) for i in range(8)]
    assert second == FrameSampler("segments", 8).test(80)[0].tolist()
    assert third == [int(10 * i + 7.5) for i in range(8)]


def test_a_stride_is_kept_and_centred():
    sampler = FrameSampler("stride", 8, stride=4)  # 29 frames from first to last
    assert sampler.test(49).tolist() == [[10, 14, 18, 22, 26, 30, 34, 38]]
    assert (np.diff(sampler.train(49, draws(1)[0])) == 4).all()
    assert sampler.test(49, 3)[:, 0].tolist() == [0, 10, 20]


def test_the_largest_stride_that_fits():
    sampler = FrameSampler("stride", 8)
    for length, stride in ((7, 1), (15, 1), (16, 2), (50, 6)):
        indices = sampler.test(length)[0]
        assert (np.diff(indices)[: length - 1] == stride)[:6].all(), length
    assert sampler.test(50)[0].tolist() == [3 + 6 * i for i in range(8)]


def test_a_short_video_repeats_its_last_frame():
    sampler = FrameSampler("stride", 8, stride=2)
    assert sampler.test(6).tolist() == [[0, 2, 4, 5, 5, 5, 5, 5]]
    assert sampler.train(6, np.full(8, EDGE)).tolist() == [0, 2, 4, 5, 5, 5, 5, 5]


def test_dense_spreads_over_the_window_and_wraps():
    sampler = FrameSampler("dense", 8)  # Side4Video: every 16th frame of 128
    assert sampler.test(148)[0].tolist() == [10 + 16 * i for i in range(8)]
    assert sampler.test(148, 3)[:, 0].tolist() == [0, 10, 20]
    assert sampler.test(50)[0].tolist() == [0, 16, 32, 48, 14, 30, 46, 12]


@pytest.mark.parametrize(
    "sampler, last",
    [(FrameSampler("stride", 8, stride=4), 31), (FrameSampler("dense", 8, dense_window=32), 28)],
)
def test_training_takes_every_start_alike(sampler, last):
    firsts = [sampler.train(60, place)[0] for place in draws(6400)]
    counts = np.bincount(firsts, minlength=last + 1)
    assert len(counts) == last + 1  # the first and the last possible start are there, none beyond
    assert counts.min() > 130 and counts.max() < 290  # about 210 expected, standard deviation 14
    assert sampler.train(60, np.zeros(8))[0] == 0 and sampler.train(60, np.full(8, EDGE))[0] == last
