import itertools

import pytest

from dear_core import build
from dear_core.training.optim import lr_scale, parameter_groups


def test_the_rate_warms_up_and_falls_to_zero():
    scales = [lr_scale(step, 100, 10) for step in range(100)]
    assert scales[0] == pytest.approx(0.1) and scales[9] == scales[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(scales[10:]))
    assert scales[55] == pytest.approx(0.5) and 0 < scales[99] < 0.001
    assert lr_scale(0, 100, 0) == 1.0


def test_norms_biases_states_and_tables_are_not_decayed(tiny_config):
    network = build.model(tiny_config, 10)
    decayed, plain = parameter_groups(network, 0.05)
    names = {id(p): name for name, p in network.named_parameters()}
    decayed_names = {names[id(p)] for p in decayed["params"]}
    plain_names = {names[id(p)] for p in plain["params"]}
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert not [n for n in decayed_names if n.endswith(("bias", "A_log", "A_b_log", ".D", "pos_embed"))]
    assert any(n.endswith("A_log") for n in plain_names) and any("cls_token" in n for n in plain_names)
    assert any(n.endswith("in_proj.weight") for n in decayed_names)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert decayed_names | plain_names == trainable
    assert not [name for name in trainable if name.startswith("tower.")]
