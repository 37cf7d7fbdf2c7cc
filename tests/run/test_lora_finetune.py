"""Adapters of a fine-tuning from a checkpoint alone: what is not loaded is what trains whole."""

import pytest

from tests.run.test_finetune import root, started

__all__ = ["root"]


@pytest.mark.parametrize("families", ["meter", "clip", "vit+bert"])
def test_what_is_new_trains_whole_and_what_is_loaded_is_frozen(families, root):
    _, parts, start = started(families, "vqa", root, "--config.lora.rank=4")
    new = {path for path, how in start.how.items() if how == "new"}
    assert set(parts.adapters.whole) == new and new
    assert set(parts.adapters.frozen) == set(start.how) - new
    assert len(parts.adapters.adapters) >= 4
