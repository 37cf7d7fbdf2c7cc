"""Retrieval measures against a plain reading of their definitions."""

import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.metrics import retrieval


def by_hand(scores, query_groups, item_groups):
    """Rank of the best positive, everything not positive that is not below it being before it."""
    ranks = []
    for row, group in zip(scores, query_groups, strict=True):
        best = max(s for s, g in zip(row, item_groups, strict=True) if g == group)
        before = [s for s, g in zip(row, item_groups, strict=True) if g != group and s >= best]
        ranks.append(1 + len(before))
    return np.array(ranks)


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    images = [f"image {i}" for i in range(30)]
    texts = [image for image in images for _ in range(5)]
    same = np.array([[i == t for t in texts] for i in images])
    scores = np.round(rng.normal(size=(30, 150)) + 1.5 * same, 1)  # rounding makes ties
    return scores, images, texts


def test_five_captions_an_image(case):
    scores, images, texts = case
    i2t, t2i = by_hand(scores, images, texts), by_hand(scores.T, texts, images)
    found = retrieval.retrieval(scores, images, texts)
    for way, ranks in (("i2t", i2t), ("t2i", t2i)):
        for k in (1, 5, 10):
            assert found[f"{way}/recall@{k}"] == pytest.approx((ranks <= k).mean())
        assert found[f"{way}/median_rank"] == np.median(ranks)
        assert found[f"{way}/mean_rank"] == pytest.approx(ranks.mean())
    recalls = [v for name, v in found.items() if "recall" in name]
    assert len(recalls) == 6 and found["rsum"] == pytest.approx(100 * sum(recalls))
    assert 6 < found["rsum"] < 600
    assert 0 < found["t2i/recall@1"] < found["t2i/recall@10"] < 1


def test_blocks_of_rows_change_nothing(case):
    scores, images, texts = case
    groups = [np.array([int(g.split()[1]) for g in side]) for side in (images, texts)]
    whole = retrieval.ranks(scores, *groups)
    np.testing.assert_array_equal(retrieval.ranks(scores, *groups, rows=7), whole)


def test_ties_and_nan_count_against_us():
    same = np.arange(4)
    assert retrieval.ranks(np.zeros((4, 4)), same, same).tolist() == [4, 4, 4, 4]
    scores = np.eye(4)
    scores[0, 0], scores[1, 2] = np.nan, np.nan
    assert retrieval.ranks(scores, same, same).tolist() == [4, 2, 1, 1]


def test_a_text_without_its_image_is_an_error():
    with pytest.raises(MmflaxError, match="nothing that belongs to it"):
        retrieval.retrieval(np.zeros((1, 2)), ["a"], ["a", "b"])
    with pytest.raises(MmflaxError, match=r"shape \[2, 1\]; expected \[1, 2\]"):
        retrieval.retrieval(np.zeros((2, 1)), ["a"], ["a", "a"])
