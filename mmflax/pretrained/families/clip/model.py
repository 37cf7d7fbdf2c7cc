"""CLIP as published (Radford et al. 2021, arXiv:2103.00020): the pair, a side, a classifier."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.encoders import clip_text, clip_vision
from mmflax.pretrained.families.base import built
from mmflax.pretrained.families.dual_encoder import DualEncoder


class CLIP(DualEncoder):
    """See `DualEncoder`. The image is its first token, the text the token that ends it.

    With `projection` 0 a side has no `image_embeds` or `text_embeds`. With `labels` above 0 there
    are `logits` [b labels] of the mean over the patches. For these and for `last_hidden_state` of
    the image the tokens leave the encoder without its last norm, as in transformers.
    """

    projection: int = 0
    labels: int = 0

    def setup(self) -> None:
        if self.projection and self.image_encoder is not None:
            self.image_projection = self.dense(self.projection, self.image_encoder, use_bias=False)
        if self.projection and self.text_encoder is not None:
            self.text_projection = self.dense(self.projection, self.text_encoder, use_bias=False)
        if self.image_encoder is not None and self.text_encoder is not None:
            self.logit_scale = self.number("logit_scale", 2.6592)
        if self.labels:
            self.head = self.dense(self.labels, self.image_encoder)

    def image_outputs(self, image: Float[Array, "b h w 3"], *, train: bool) -> dict[str, Any]:
        x, (raw,) = self.image_encoder(image, layers=1, norm_layers=False, train=train)
        out = {"last_hidden_state": raw, "pooler_output": x[:, 0]}
        if self.projection:
            out["image_embeds"] = self.image_projection(x[:, 0])
        if self.labels:
            out["logits"] = self.head(raw[:, 1:].mean(axis=1))
        return out

    def text_outputs(
        self, tokens: Any, text_mask: Any, token_types: Any, *, train: bool
    ) -> dict[str, Any]:
        x = self.text_encoder(tokens, text_mask, train=train)
        pooled = self.text_encoder.pool(x, tokens, text_mask)
        out = {"last_hidden_state": x, "pooler_output": pooled}
        if self.projection:
            out["text_embeds"] = self.text_projection(pooled)
        return out

    def scaled(self, cosines: Float[Array, "i t"]) -> Float[Array, "i t"]:
        return cosines * jnp.exp(self.logit_scale)


def build(**fields: Any) -> CLIP:
    """A `CLIP`; the encoders are keywords of `clip_vision` and `clip_text`."""
    return CLIP(**built(fields, image_encoder=clip_vision.build, text_encoder=clip_text.build))
