import numpy as np
import pytest

from dear_core.data.sampling import segment_indices


def test_validation_takes_the_centre_of_each_segment():
    assert segment_indices(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


def test_an_exact_fit_takes_every_frame():
    assert segment_indices(8, 8).tolist() == list(range(8))


def test_one_frame_repeats():
    assert segment_indices(1, 8).tolist() == [0] * 8


@pytest.mark.parametrize("length", [1, 2, 5, 7, 8, 9, 31, 60])
def test_always_in_range_and_in_order(length):
    for place in (None, np.zeros(8), np.full(8, np.nextafter(1, 0)), np.random.default_rng(0).random(8)):
        indices = segment_indices(length, 8, place)
        assert indices.shape == (8,) and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < length
        assert (np.diff(indices) >= 0).all()


def test_training_stays_within_its_segment():
    for draw in range(20):
        indices = segment_indices(80, 8, np.random.default_rng(draw).random(8))
        assert (indices // 10).tolist() == list(range(8))
