"""A tiny question-answering model: every kind of parameter that the default rules place."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.models.encoders import bert, vit
from mmflax.models.fusion import co_attention
from mmflax.models.heads import VQAHead
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import vqa


class Tiny(NamedTuple):
    task: Any
    batch: dict

    def init(self, key):
        return self.task.model.init(key, jax.tree.map(jnp.asarray, self.batch), train=False)[
            "params"
        ]

    def apply(self, params, batch, key, train):
        return self.task.model.apply({"params": params}, batch, train=train)


@pytest.fixture(scope="session")
def tiny():
    """``tiny(scan_layers=False) -> Tiny`` with a batch of 16."""

    def make(scan_layers=False):
        sizes = dict(width=16, depth=1, num_heads=4, scan_layers=scan_layers)
        backbone = VisionLanguageModel(
            vit.build(image_size=16, patch_size=8, **sizes),
            bert.build(vocab_size=30, max_length=8, **sizes),
            co_attention.build(**sizes),
        )
        draw = np.random.default_rng(0)
        batch = {
            "image": draw.normal(size=(16, 16, 16, 3)).astype(np.float32),
            "tokens": draw.integers(0, 30, size=(16, 8)).astype(np.int32),
            "text_mask": np.arange(8)[None] < draw.integers(3, 9, size=(16, 1)),
            "label": draw.integers(0, 5, size=16).astype(np.int32),
            "mask": np.arange(16) != 3,
        }
        return Tiny(vqa.build(backbone=backbone, num_answers=5), batch)

    return make


class Reader(nn.Module):
    """Text alone: quick to compile, with a table, a mask, attention, an MLP and a head."""

    @nn.compact
    def __call__(self, batch, *, train):
        encoder = bert.build(vocab_size=30, max_length=8, width=16, depth=1, num_heads=4)
        words = encoder(batch["tokens"], batch["text_mask"], train=train)
        return {"logits": VQAHead(5, name="head")(words[:, 0])}


@pytest.fixture(scope="session")
def reader(tiny):
    """Like ``tiny``, with a model that compiles in seconds."""
    made = tiny()
    return made._replace(task=made.task._replace(model=Reader()))
