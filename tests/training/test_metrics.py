import pytest
import torch

from dear_core.training.heads import Heads
from dear_core.training.metrics import Meter


def meter_of(count):
    return Meter(Heads(("label",), (count,)), torch.device("cpu"))


def test_counts_are_exact_and_add_up_over_batches():
    logits = torch.tensor(
        [[9.0, 0, 0, 0, 0, 0, 1], [0, 9, 0, 0, 0, 0, 1], [6, 5, 4, 3, 2, 1, 0], [0.5, 0.1, 9, 0.2, 0.3, 0, 1]]
    )
    labels = torch.tensor([[0], [1], [5], [0]])
    whole, parts = meter_of(7), meter_of(7)
    whole.add(logits, labels)
    parts.add(logits[:1], labels[:1])
    parts.add(logits[1:], labels[1:])
    scores = whole.scores()
    assert scores == parts.scores()
    assert scores.top1 == 0.5 and scores.clips == 4
    assert scores.top5 == 0.75  # class 5 is the sixth of its clip
    assert scores.correct == (1, 1, 0, 0, 0, 0, 0) and scores.total == (2, 1, 0, 0, 0, 1, 0)
    assert scores.per_class()[:2] == [0.5, 1.0] and scores.per_class()[2] is None
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 0]).item()
    assert scores.loss == pytest.approx(expected, abs=1e-5)


def test_fewer_than_five_classes():
    meter = meter_of(2)
    meter.add(torch.tensor([[1.0, 0.0]]), torch.tensor([[1]]))
    assert meter.scores().top5 == 1.0 and meter.scores().top1 == 0.0
