"""A batch of four pairs and a small backbone for tasks that pick among answers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmflax.models.encoders.base import ImageEncoderBase, TextEncoderBase
from mmflax.models.fusion.base import Fused, FusionBase
from mmflax.models.vision_language import VisionLanguageModel

IMAGE_TOKENS = 4


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32),
        "second_image": jnp.asarray(rng.normal(size=(4, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(5, 20, (4, 5)), jnp.int32),
        "text_mask": jnp.ones((4, 5), bool),
        "label": jnp.asarray([0, 2, -1, 1], jnp.int32),
        "question_type": jnp.asarray([0, 1, 1, 1], jnp.int32),
    }


def captioned(batch):
    return {
        **batch,
        "caption": jnp.asarray([[6, 7], [8, 8], [9, 5], [5, 0]], jnp.int32),
        "caption_mask": jnp.asarray([[1, 1], [1, 1], [1, 1], [1, 0]], bool),
    }


class Patches(ImageEncoderBase):
    """Image encoder: patches of 4x4 pixels, projected."""

    def num_tokens(self):
        return IMAGE_TOKENS

    @nn.compact
    def __call__(self, image, *, train):
        b = image.shape[0]
        patches = image.reshape(b, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(b, IMAGE_TOKENS, 48)
        return nn.Dense(16)(patches)


class Words(TextEncoderBase):
    """Text encoder: a table."""

    def setup(self):
        self.word_embedding = nn.Embed(20, 16)

    def __call__(self, tokens, text_mask, *, train):
        return self.word_embedding(tokens)


class Product(FusionBase):
    """Fusion: means over what is there, and their product."""

    def __call__(self, image, text, image_mask, text_mask, *, train):
        mask = jnp.ones(image.shape[:2], bool) if image_mask is None else image_mask
        picture = (image * mask[..., None].astype(image.dtype)).mean(axis=1)
        words = (text * text_mask[..., None].astype(text.dtype)).mean(axis=1)
        pooled = jnp.concatenate([picture, words, picture * words], axis=-1)
        return Fused(image, text, pooled)


def backbone():
    """The contracts of a real one, at a fraction of the time to compile."""
    return VisionLanguageModel(Patches(), Words(), Product())


def init(task, batch):
    """Parameters large enough for every path to matter."""
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes["params"]
    )


def losses(task, batch, steps=30, rate=0.05):
    """The mean loss over `steps` of plain gradient descent on one batch."""
    params = jax.jit(lambda key: task.model.init(key, batch, train=False))(jax.random.key(0))

    @jax.jit
    def step(params):
        def mean_loss(params):
            return task.loss(task.model.apply(params, batch, train=True), batch).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        return jax.tree.map(lambda p, g: p - rate * g, params, grads), loss

    found = []
    for _ in range(steps):
        params, loss = step(params)
        found.append(float(loss))
    return found


def records(actual, logits, names, /, **columns):
    """Records as evaluation keeps them."""
    return [
        {
            "answer": answer,
            "logits": np.asarray(row, np.float32),
            "predicted_answer": names[int(np.argmax(row))],
            **{name: values[i] for name, values in columns.items()},
        }
        for i, (answer, row) in enumerate(zip(actual, logits, strict=True))
    ]
