"""The contract's table accepts what the pipeline makes and names what differs."""

import numpy as np
import pytest

from mmflax.data.batch import check_batch, pad_rows
from mmflax.errors import MmflaxError


def batch():
    return {
        "image": np.zeros((2, 8, 8, 3), np.float32),
        "tokens": np.zeros((2, 4), np.int32),
        "text_mask": np.ones((2, 4), bool),
        "label": np.zeros(2, np.int32),
        "question_type": np.zeros(2, np.int32),
        "mask": np.ones(2, bool),
        "id": np.array(["a", "b"]),
    }


def test_accepts_the_contract():
    check_batch(batch())
    check_batch({**batch(), "image_mask": np.ones((2, 5), bool)})


def test_regions_may_stand_for_the_image():
    regions = {
        "regions": np.zeros((2, 5, 7), np.float32),
        "boxes": np.zeros((2, 5, 4), np.float32),
        "region_mask": np.ones((2, 5), bool),
    }
    check_batch({**batch(), **regions})
    bare = {**batch(), **regions}
    del bare["image"]
    check_batch(bare)
    del bare["regions"]
    with pytest.raises(MmflaxError, match=r"lacks \['image'\]"):
        check_batch(bare)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("image", np.zeros((2, 8, 8, 3)), r"'image' is float64 .*expected float32 \[b h w 3\]"),
        ("image", np.zeros((2, 3, 8, 8), np.float32), "expected float32"),
        ("tokens", np.zeros((2, 4), np.int64), "'tokens' is int64"),
        ("text_mask", np.ones((2, 5), bool), r"'text_mask' is bool \[2, 5\]; expected .*b=2 t=4"),
        ("label", np.zeros(3, np.int32), r"'label' is int32 \[3\]; expected int32 \[b=2\]"),
        ("mask", np.ones(2, np.float32), "'mask' is float32"),
        ("id", np.arange(2), "'id' is int64"),
        ("imagemask", np.ones((2, 5), bool), r"unknown keys \['imagemask'\]"),
    ],
)
def test_names_the_key(key, value, message):
    with pytest.raises(MmflaxError, match=message):
        check_batch({**batch(), key: value})


def test_names_a_missing_key():
    missing = batch()
    del missing["mask"]
    with pytest.raises(MmflaxError, match=r"lacks \['mask'\]"):
        check_batch(missing)


def test_padding_repeats_the_last_row_under_a_false_mask():
    whole = {
        "x": np.arange(6.0).reshape(3, 2),
        "mask": np.ones(3, bool),
        "id": np.array(list("abc")),
    }
    padded = pad_rows(whole, 5)
    np.testing.assert_array_equal(padded["x"], whole["x"][[0, 1, 2, 2, 2]])
    assert padded["mask"].tolist() == [True] * 3 + [False] * 2
    assert padded["id"].tolist() == list("abccc")
    assert whole["mask"].all() and pad_rows(whole, 3).keys() == whole.keys()
    with pytest.raises(MmflaxError, match="has 3 rows; expected at most 2"):
        pad_rows(whole, 2)
