"""SigLIP as published (Zhai et al. 2023, arXiv:2303.15343): every pair is judged by itself."""

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.encoders import siglip_text, vit
from mmflax.models.heads import MAPHead
from mmflax.pretrained.families.base import built
from mmflax.pretrained.families.dual_encoder import DualEncoder


class SigLIP(DualEncoder):
    """See `DualEncoder`. The image is pooled by attention, the text is its last token, projected.

    Without `pooler` the image side gives tokens only. With `labels` above 0 there are `logits`
    [b labels] of the mean over the image's tokens.
    """

    projection: int = 0
    pooler: bool = True
    labels: int = 0

    exclusive: ClassVar[bool] = False
    image_pool: ClassVar[str] = "map"

    def setup(self) -> None:
        image, text = self.image_encoder, self.text_encoder
        if image is not None and self.pooler:
            self.image_head = MAPHead(image.layer)
        if text is not None:
            self.text_projection = self.dense(self.projection or text.width, text)
        if image is not None and text is not None:
            # As the paper starts them: most pairs of a batch do not match.
            self.logit_scale = self.number("logit_scale", 2.302585)
            self.logit_bias = self.number("logit_bias", -10.0)
        if self.labels:
            self.head = self.dense(self.labels, image)

    def image_outputs(self, image: Float[Array, "b h w 3"], *, train: bool) -> dict[str, Any]:
        x = self.image_encoder(image, train=train)
        out = {"last_hidden_state": x}
        if self.pooler:
            out["pooler_output"] = out["image_embeds"] = self.image_head(x, train=train)
        if self.labels:
            out["logits"] = self.head(x.mean(axis=1))
        return out

    def text_outputs(
        self, tokens: Any, text_mask: Any, token_types: Any, *, train: bool
    ) -> dict[str, Any]:
        x = self.text_encoder(tokens, text_mask, train=train)
        pooled = self.text_projection(self.text_encoder.pool(x, tokens, text_mask))
        return {"last_hidden_state": x, "pooler_output": pooled, "text_embeds": pooled}

    def scaled(self, cosines: Float[Array, "i t"]) -> Float[Array, "i t"]:
        return cosines * jnp.exp(self.logit_scale) + self.logit_bias


def build(**fields: Any) -> SigLIP:
    """A `SigLIP`; the encoders are keywords of `vit` and `siglip_text`."""
    return SigLIP(**built(fields, image_encoder=vit.build, text_encoder=siglip_text.build))
