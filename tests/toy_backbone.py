"""A vision-language model of dense layers: the contracts of the real one, compiled in a moment."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.losses.masked import patchify
from mmflax.models.encoders.base import ImageEncoderBase, TextEncoderBase
from mmflax.models.fusion.base import Fused, FusionBase
from mmflax.models.layers.attention import masked_mean, zero_masked
from mmflax.models.vision_language import VisionLanguageModel

WIDTH, VOCAB, IMAGE_SIZE = 16, 30, 8


class ToyImage(ImageEncoderBase):
    """[CLS] (the mean) and 2x2 patches."""

    cls_token = True

    def grid(self, image_size: Any = None) -> tuple[int, int]:
        return 2, 2

    @nn.compact
    def __call__(self, image: Any, *, train: bool) -> Any:
        x = nn.Dense(WIDTH, name="patches")(patchify(image, self.grid()))
        return jnp.tanh(jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1))


class ToyText(TextEncoderBase):
    """Each word with the mean of all words, or if causal of those so far."""

    supports_causal = True

    def setup(self) -> None:
        self.word_embedding = nn.Embed(VOCAB, WIDTH)
        self.dense = nn.Dense(WIDTH)

    def __call__(self, tokens: Any, text_mask: Any, *, causal: bool = False, train: bool) -> Any:
        x = zero_masked(self.word_embedding(jnp.where(text_mask, tokens, 0)), text_mask)
        seen = _so_far(x) if causal else masked_mean(x, text_mask)[:, None]
        return jnp.tanh(self.dense(x + seen))


class ToyFusion(FusionBase):
    """Image tokens read the text's mean and words the image's; `causal` refuses unless `one_way`,
    where image tokens read nothing."""

    one_way: bool = False
    width: int = WIDTH
    num_heads: int = 2

    supports_causal = True

    @nn.compact
    def __call__(
        self, image: Any, text: Any, image_mask: Any, text_mask: Any, *,
        causal: bool = False, train: bool,
    ) -> Fused:  # fmt: skip
        image, text = zero_masked(image, image_mask), zero_masked(text, text_mask)
        seen, read = masked_mean(image, image_mask), masked_mean(text, text_mask)
        image = nn.Dense(WIDTH, name="image")(image)
        if not self.one_way:
            image = jnp.tanh(image + nn.Dense(WIDTH, name="read")(read)[:, None])
        x = nn.Dense(WIDTH, name="text")(text) + nn.Dense(WIDTH, name="seen")(seen)[:, None]
        x = jnp.tanh(x + (_so_far(x) if causal else masked_mean(x, text_mask)[:, None]))
        pair = jnp.concatenate([x[:, 0], seen, read, seen * read], axis=-1)
        return Fused(image, x, pair)


def _so_far(x: Any) -> Any:
    return jnp.cumsum(x, axis=1) / jnp.arange(1.0, x.shape[1] + 1)[None, :, None]


def toy_backbone(one_way: bool = False) -> VisionLanguageModel:
    return VisionLanguageModel(ToyImage(), ToyText(), ToyFusion(one_way))
