import numpy as np
import pytest

from dear_core.data import controls


@pytest.mark.parametrize("count", [2, 3, 200])
def test_every_clip_gets_anothers_depth_and_each_is_used_once(count):
    others = controls.other_clips(count, seed=0)
    assert sorted(others) == list(range(count))
    assert (others != np.arange(count)).all()
    assert others.tolist() == controls.other_clips(count, seed=0).tolist()
    if count > 3:
        assert others.tolist() != controls.other_clips(count, seed=1).tolist()


def test_one_clip_has_no_other():
    assert controls.other_clips(1, seed=0).tolist() == [0]


def test_the_order_of_frames_is_another_one_for_every_clip_and_seed():
    orders = {tuple(controls.frame_order(8, seed, index)) for seed in range(3) for index in range(10)}
    assert len(orders) == 30
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert {tuple(controls.frame_order(2, 0, index)) for index in range(20)} == {(1, 0)}
