"""An image encoder, a text encoder and their fusion as one model."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.contracts import Fusion, ImageEncoder, TextEncoder


class Encoded(NamedTuple):
    """Fused streams, one vector for the pair, the masks that say which tokens count, and the
    encoders' tokens as they were before fusion: `image_tokens` and `text_tokens`."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b t d"]
    pooled: Float[Array, "b e"]
    image_mask: Bool[Array, "b n"]
    text_mask: Bool[Array, "b t"]
    image_tokens: Float[Array, "b n i"]
    text_tokens: Float[Array, "b t j"]


class VisionLanguageModel(nn.Module):
    """Encoders and fusion arrive as fields, so any of them can be swapped (`models/contracts.py`).

    `image_mask` is over the encoder's tokens, CLS included. An all-false row means that there is no
    image, and whatever the pixels hold becomes 0 before the encoder. A partly false row hides
    tokens from the fusion only: inside the encoder they have met the others already, unless it
    takes an `image_mask` of its own.

    `image_type` is each image's row of the fusion's types, for a fusion with `num_types`.

    `modality_dropout` trains for absent modalities (after ModDrop, Neverova et al. 2016, sec. 3.4):
    with that probability an example that has both loses one, image or text by a fair coin, as if it
    had come without. The masks in `Encoded` say so. Where the paper drops each modality by itself,
    here one always remains.
    """

    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    fusion: Fusion
    modality_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.modality_dropout < 1.0:
            raise MmflaxError(
                f"modality_dropout is {self.modality_dropout}; expected a probability from 0 up to "
                "but without 1."
            )
        super().__post_init__()

    def __call__(
        self,
        image: Float[Array, "b h w 3"] | Float[Array, "b n f"],
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"],
        image_mask: Bool[Array, "b n"] | None = None,
        image_type: Int[Array, "b"] | None = None,
        *,
        train: bool,
    ) -> Encoded:
        rows = text_mask.shape[:1]
        has_image = None if image_mask is None else image_mask.any(axis=1)
        if train and self.modality_dropout > 0.0:
            has_image, has_text = kept_modalities(
                self.make_rng("dropout"),
                jnp.ones(rows, bool) if has_image is None else has_image,
                text_mask.any(axis=1),
                self.modality_dropout,
            )
            text_mask = text_mask & has_text[:, None]
        count = self.fusion.num_layers_read
        image_tokens, image_layers = read_image(
            self.image_encoder, count, image, has_image, image_mask, train=train
        )
        if image_mask is not None and image_mask.shape[1] != image_tokens.shape[1]:
            raise MmflaxError(
                f"image_mask has {image_mask.shape[1]} columns, the image encoder gives "
                f"{image_tokens.shape[1]} tokens (CLS included); make them equal."
            )
        if has_image is not None:
            whole = jnp.ones(image_tokens.shape[:2], bool) if image_mask is None else image_mask
            image_mask = whole & has_image[:, None]
        text_tokens, text_layers = read_encoder(
            self.text_encoder, count, tokens, text_mask, train=train
        )
        read: dict[str, Any] = {}
        if count:
            read |= dict(image_layers=image_layers, text_layers=text_layers)
        if image_type is not None:
            read |= dict(image_type=image_type)
        fused = self.fusion(image_tokens, text_tokens, image_mask, text_mask, train=train, **read)
        if image_mask is None:
            image_mask = jnp.ones(image_tokens.shape[:2], bool)
        return Encoded(
            fused.image, fused.text, fused.pooled, image_mask, text_mask, image_tokens, text_tokens
        )


def kept_modalities(
    key: Array, image: Bool[Array, "b"], text: Bool[Array, "b"], rate: float
) -> tuple[Bool[Array, "b"], Bool[Array, "b"]]:
    """Which examples keep their image and which their text, of those that have one.

    An example with both loses one with probability `rate`; the only one there is stays.
    """
    which, coin = jax.random.split(key)
    loses = image & text & jax.random.bernoulli(which, rate, image.shape)
    heads = jax.random.bernoulli(coin, 0.5, image.shape)
    return image & ~(loses & heads), text & ~(loses & ~heads)


def read_image(
    encoder: ImageEncoder,
    count: int,
    image: Float[Array, "b ..."],
    has_image: Bool[Array, "b"] | None,
    image_mask: Bool[Array, "b n"] | None,
    *,
    train: bool,
) -> tuple[Any, Any]:
    """`read_encoder` of images, pixels or regions; rows without an image are set to zero."""
    if has_image is not None:
        rows = has_image.reshape(-1, *(1,) * (image.ndim - 1))
        image = jnp.where(rows, image, jnp.zeros_like(image))
    own = {"image_mask": image_mask} if encoder.reads_regions else {}
    return read_encoder(encoder, count, image, **own, train=train)


def read_encoder(
    encoder: ImageEncoder | TextEncoder, count: int, *inputs: Any, **rest: Any
) -> tuple[Any, Any]:
    """An encoder's tokens, and those of its last `count` layers, or None for 0."""
    if not count:
        return encoder(*inputs, **rest), None
    if not encoder.gives_layers:
        raise MmflaxError(
            f"this fusion reads the last {count} layers of each encoder, which "
            f"{type(encoder).__name__} does not give; use an encoder that takes layers=, such as "
            "vit and bert, or another fusion."
        )
    return encoder(*inputs, layers=count, **rest)
