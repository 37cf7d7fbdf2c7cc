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


# Three pictures; the second text is of the first two, in other letters and spaces.
OWNER = np.array([0, 0, 1, 1, 2])
TEXTS = ["a dog", "Two  birds ", "two birds", "a tree", "a boat"]
SCORES = np.array(
    [
        # dog  birds birds tree  boat
        [0.1, 0.2, 0.9, 0.3, 0.4],  # picture 0: its best is the birds that stand at picture 1
        [0.7, 0.8, 0.6, 0.5, 0.1],  # picture 1: its best are the birds that stand at picture 0
        [0.9, 0.1, 0.3, 0.8, 0.5],  # picture 2: the dog and the tree come before its boat
    ]
)


def test_equal_texts_by_hand():
    images, texts = retrieval.with_equal_texts(OWNER, TEXTS)
    assert texts.tolist() == [0, 1, 1, 2, 3]
    assert images.tolist() == [[0, 1], [1, 2], [3, -1]]
    own = np.arange(3)
    # Picture 0: by ids 0.9, 0.4 and 0.3 are before its 0.2; picture 1: 0.8 and 0.7 before its 0.6.
    assert retrieval.ranks(SCORES, own, OWNER).tolist() == [4, 3, 3]
    assert retrieval.ranks(SCORES, images, texts).tolist() == [1, 1, 3]
    # The dog is of picture 0 alone, though a text of it is one of picture 1 as well.
    assert retrieval.ranks(SCORES.T, OWNER, own).tolist() == [3, 2, 2, 2, 1]
    assert retrieval.ranks(SCORES.T, texts, images).tolist() == [3, 1, 1, 2, 1]


def test_equal_texts_change_nothing_where_there_are_none(case):
    scores, images, texts = case
    owner = np.array([images.index(text) for text in texts])
    shuffled = np.random.default_rng(1).permutation(len(owner))
    scores, owner = scores[:, shuffled], owner[shuffled]
    own = np.arange(len(images))
    of_images, of_texts = retrieval.with_equal_texts(owner, [f"text {i}" for i in shuffled])
    assert of_images.shape == (30, 5)
    for rows in (7, 256):
        np.testing.assert_array_equal(
            retrieval.ranks(scores, of_images, of_texts, rows=rows),
            retrieval.ranks(scores, own, owner),
        )
        np.testing.assert_array_equal(
            retrieval.ranks(scores.T, of_texts, of_images, rows=rows),
            retrieval.ranks(scores.T, owner, own),
        )


def test_equal_texts_are_those_of_a_plain_reading():
    rng = np.random.default_rng(2)
    owner = np.concatenate([np.arange(12), rng.integers(0, 12, 28)])
    words = rng.integers(0, 15, 40)
    scores = np.round(rng.normal(size=(12, 40)), 1)
    own_words = [set(words[owner == image]) for image in range(12)]
    right = np.array([[word in own for word in words] for own in own_words])

    def plain(scores, right):
        best = np.where(right, scores, -np.inf).max(1)
        return [
            1 + sum(s >= top and not good for s, good in zip(row, goods, strict=True))
            for row, goods, top in zip(scores, right, best, strict=True)
        ]

    images, texts = retrieval.with_equal_texts(owner, [f"Word {word}" for word in words])
    assert retrieval.ranks(scores, images, texts).tolist() == plain(scores, right)
    assert retrieval.ranks(scores.T, texts, images).tolist() == plain(scores.T, right.T)
