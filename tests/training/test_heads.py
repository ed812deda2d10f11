"""Heads: several sets of classes in one row of scores."""

import pytest
import torch
import torch.nn.functional as F

from dear_core.training.heads import Heads
from dear_core.training.metrics import Meter

VERB_NOUN = Heads(("verb", "noun"), (3, 4))


def test_one_head_is_plain_cross_entropy():
    heads = Heads.of({"label": ("a", "b", "c")})
    logits, labels = torch.randn(5, 3), torch.tensor([[0], [2], [1], [1], [0]])
    expected = F.cross_entropy(logits, labels[:, 0], reduction="none", label_smoothing=0.1)
    assert torch.equal(heads.loss(logits, labels, label_smoothing=0.1), expected)


def test_the_loss_is_the_mean_over_heads_for_classes_and_for_shares():
    logits, labels = torch.randn(2, 7), torch.tensor([[0, 3], [2, 1]])
    expected = (
        F.cross_entropy(logits[:, :3], labels[:, 0]) + F.cross_entropy(logits[:, 3:], labels[:, 1])
    ) / 2
    assert VERB_NOUN.loss(logits, labels).mean() == pytest.approx(expected.item(), abs=1e-6)
    targets = VERB_NOUN.one_hot(labels)
    assert targets.tolist() == [[1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 1, 0, 0]]
    for smoothing in (0.0, 0.1):
        by_class = VERB_NOUN.loss(logits, labels, label_smoothing=smoothing)
        by_share = VERB_NOUN.loss(logits, targets, label_smoothing=smoothing)
        assert torch.allclose(by_class, by_share, atol=1e-6)


def test_views_are_averaged_as_probabilities_head_by_head():
    logits = torch.randn(6, 7)
    mean = VERB_NOUN.average_views(logits, 3)
    assert mean.shape == (2, 7) and VERB_NOUN.average_views(logits, 1) is logits
    for part, whole in zip(VERB_NOUN.split(mean), VERB_NOUN.split(logits), strict=True):
        expected = whole.softmax(1).view(2, 3, -1).mean(1)
        assert torch.allclose(part.softmax(1), expected, atol=1e-6)


def test_an_action_is_right_where_verb_and_noun_are():
    sure = 9.0
    logits = torch.zeros(3, 7)
    for row, (verb, noun) in enumerate([(0, 3), (2, 0), (1, 2)]):
        logits[row, verb] = logits[row, 3 + noun] = sure
    labels = torch.tensor([[0, 3], [2, 1], [0, 2]])  # right; noun wrong; verb wrong
    meter = Meter(VERB_NOUN, torch.device("cpu"))
    meter.add(logits[:1], labels[:1])
    meter.add(logits[1:], labels[1:])
    meter.add_bad(2)
    scores = meter.scores()
    assert scores.top1 == pytest.approx(1 / 3) and scores.clips == 3 and scores.bad == 2
    assert scores.heads["verb_top1"] == pytest.approx(2 / 3)
    assert scores.heads["noun_top1"] == pytest.approx(2 / 3)
    assert scores.figures().keys() == {
        "loss", "top1", "top5", "verb_top1", "verb_top5", "noun_top1", "noun_top5",
    }  # fmt: skip
    assert scores.correct == (1, 0, 1, 0, 0, 1, 1) and scores.total == (2, 0, 1, 0, 1, 1, 1)
    assert VERB_NOUN.hits(logits, labels).tolist() == [True, False, False]


def test_the_five_best_actions_rank_products_of_probabilities():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, 7, generator=generator)
    labels = torch.stack(
        [torch.randint(3, (20,), generator=generator), torch.randint(4, (20,), generator=generator)], dim=1
    )
    meter = Meter(VERB_NOUN, torch.device("cpu"))
    meter.add(logits, labels)
    verbs, nouns = logits[:, :3].softmax(1), logits[:, 3:].softmax(1)
    hits = 0
    for clip in range(20):
        ranked = sorted(((verbs[clip, v] * nouns[clip, n]).item(), v, n) for v in range(3) for n in range(4))[
            -5:
        ]
        hits += tuple(labels[clip].tolist()) in {(v, n) for _, v, n in ranked}
    assert meter.scores().top5 == pytest.approx(hits / 20)
    assert 0 < hits < 20
