"""Encoders and a fusion of a user's own, by dotted path, with the base classes' defaults."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.models import contracts
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import retrieval, vqa

IMAGE = """
import flax.linen as nn
from mmflax.models.encoders.base import ImageEncoderBase

class Rows(ImageEncoderBase):
    width: int

    def num_tokens(self, image_size=None):
        return 8

    @nn.compact
    def __call__(self, image, *, train):
        return nn.Dense(self.width)(image.reshape(len(image), 8, -1))

def build(**fields) -> Rows:
    return Rows(**fields)
"""
TEXT = """
import flax.linen as nn
from mmflax.models.encoders.base import TextEncoderBase

class Bag(TextEncoderBase):
    width: int
    vocab_size: int

    def setup(self):
        self.word_embedding = nn.Embed(self.vocab_size, self.width)

    def __call__(self, tokens, text_mask, *, train):
        return self.word_embedding(tokens)

def build(**fields) -> Bag:
    return Bag(**fields)
"""
FUSION = """
import flax.linen as nn
import jax.numpy as jnp
from mmflax.models.fusion.base import Fused, Fusion
from mmflax.models.layers.attention import masked_mean
from mmflax.registry import make

class Means(Fusion):
    power: float = 1.0

    @nn.compact
    def fuse(self, image, text, image_mask, text_mask, *, train):
        image, text = self.embed(image, text, image_mask, text_mask)
        text = self.layers("encoder")(text, None, train=train)
        pooled = masked_mean(image, image_mask) * masked_mean(text, text_mask) ** self.power
        return Fused(image, text, pooled)

def build(**fields) -> Means:
    return make(Means, fields)
"""
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32),
    "tokens": jnp.asarray([[5, 6, 7], [7, 8, 0], [9, 5, 6], [6, 6, 0]], jnp.int32),
    "text_mask": jnp.asarray([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]], bool),
    "image_present": jnp.asarray([True, True, False, True]),
    "label": jnp.asarray([0, 1, 2, 0], jnp.int32),
}


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Builds a part from `own_parts`, a package outside of mmflax."""
    package = tmp_path / "own_parts"
    package.mkdir()
    for name, source in (("__init__", ""), ("image", IMAGE), ("text", TEXT), ("fusion", FUSION)):
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)

    def build(part, **fields):
        where = f"model.{part}"
        return registry.build("mmflax.models", where, {"name": f"own_parts.{part}", **fields})

    return build


def model(own):
    return VisionLanguageModel(
        own("image", width=6),
        own("text", width=10, vocab_size=12),
        own("fusion", width=8, depth=1, num_heads=2, mlp_dim=12, norm_style="pre"),
        modality_dropout=0.2,
    )


@pytest.mark.parametrize("task", [vqa, retrieval])
def test_own_parts_train(own, task):
    sizes = dict(num_answers=3) if task is vqa else dict(embed_dim=4, fused=True)
    made = task.build(
        backbone=model(own) if task is vqa else model(own).copy(modality_dropout=0.0), **sizes
    )

    def loss(params, key):
        rngs = {"dropout": key}
        return made.loss(made.model.apply({"params": params}, BATCH, train=True, rngs=rngs), BATCH)

    params = jax.jit(lambda: made.model.init(jax.random.key(0), BATCH, train=False)["params"])()
    step = jax.jit(jax.value_and_grad(lambda params: loss(params, jax.random.key(1)).mean()))
    before, gradient = step(params)
    moved = jax.tree.map(lambda leaf, g: leaf - 0.005 * g, params, gradient)
    assert step(moved)[0] < before
    for part in ("image_encoder", "text_encoder", "fusion"):
        assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient["backbone"][part])), part


def test_own_parts_keep_the_contract(own):
    parts = model(own)
    assert isinstance(parts.image_encoder, contracts.ImageEncoder)
    assert isinstance(parts.text_encoder, contracts.TextEncoder)
    assert isinstance(parts.fusion, contracts.Fusion)
    assert not parts.image_encoder.has_grid
    with pytest.raises(MmflaxError, match="tokens of Rows lie on no grid"):
        parts.image_encoder.grid()


def test_keywords_of_own_parts_are_checked(own):
    sizes = dict(width=8, depth=1, num_heads=2)
    with pytest.raises(MmflaxError, match="fusion.num_head is .*did you mean 'num_heads'"):
        own("fusion", width=8, depth=1, num_head=2)
    with pytest.raises(MmflaxError, match="fusion.dropout_rate is 'a'.*expected float"):
        own("fusion", dropout_rate="a", **sizes)
    with pytest.raises(MmflaxError, match="needs num_heads, depth"):
        own("fusion", width=8)
    with pytest.raises(MmflaxError, match="power is 'b'"):
        own("fusion", power="b", **sizes)
