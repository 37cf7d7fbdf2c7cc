"""What the families' modules share: parts built from keywords, and batches to initialize with."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.encoders.base import sides
from mmflax.models.heads import MLMHead
from mmflax.models.layers.blocks import KERNEL_INIT


def built(fields: Mapping[str, Any], **builders: Callable[..., Any]) -> dict[str, Any]:
    """`fields`, with the parts that have builders made of the keywords given for them."""
    given = {name: fields[name] for name in builders if fields.get(name) is not None}
    return {**fields, **{name: builders[name](**keywords) for name, keywords in given.items()}}


def text_zeros(rows: int) -> dict[str, Any]:
    """A batch with the shapes of a real one: four tokens."""
    return {"tokens": jnp.zeros((rows, 4), jnp.int32), "text_mask": jnp.ones((rows, 4), bool)}


def image_zeros(encoder: Any, rows: int) -> dict[str, Any]:
    """… and an image of the size that the encoder was built for."""
    return {"image": jnp.zeros((rows, *sides(encoder.image_size), 3), jnp.float32)}


def pair_zeros(encoder: Any, rows: int, num_images: int = 1) -> dict[str, Any]:
    """… and of a text with one image or two."""
    image = image_zeros(encoder, rows)
    second = {"second_image": image["image"]} if num_images == 2 else {}
    return {**image, **second, **text_zeros(rows)}


class PairZeros:
    """`zeros` of a family that reads a text with as many images as its `num_images` says."""

    image_encoder: Any
    num_images: int

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return pair_zeros(self.image_encoder, rows, self.num_images)


def dense_head(encoder: Any, size: int, name: str) -> nn.Dense:
    """A linear head of the module that calls this, in the encoder's dtypes."""
    return nn.Dense(size, kernel_init=KERNEL_INIT, name=name, **encoder.dtypes)


def word_logits(
    encoder: Any,
    x: Float[Array, "b t d"],
    table: str = "tied",
    *,
    activation: str | None = None,
    epsilon: float | None = None,
) -> Float[Array, "b t v"]:
    """The MLM head `word_head` of the module that calls this.

    Its table is the text encoder's ("tied") or its "own"; activation and epsilon default to the
    encoder's.
    """
    head = MLMHead(
        encoder.vocab_size,
        activation or encoder.layer.activation,
        encoder.layer.epsilon if epsilon is None else epsilon,
        name="word_head",
        **encoder.dtypes,
    )
    return head(x, encoder.word_embedding.embedding if table == "tied" else None)
