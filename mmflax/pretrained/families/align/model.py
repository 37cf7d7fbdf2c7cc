"""ALIGN as published (Jia et al. 2021, arXiv:2102.05918): EfficientNet and BERT, or either alone.

The image's vector is the mean of its tokens, without a projection; the text's is its first token,
projected. Cosines are divided by a learned temperature.
"""

from typing import Any, ClassVar

from jaxtyping import Array, Float

from mmflax.models.encoders import bert, efficientnet
from mmflax.models.layers.blocks import lookup
from mmflax.pretrained.families.base import built
from mmflax.pretrained.families.dual_encoder import DualEncoder


class ALIGN(DualEncoder):
    """See `DualEncoder`. `pooling` of the image's tokens is "mean" or "max".

    The files hold BERT's pooler (`pooler`), which the pair does not read.
    """

    projection: int = 0
    pooling: str = "mean"
    pooler: bool = True

    text_pool: ClassVar[str] = "cls"

    @property
    def image_pool(self) -> str:  # type: ignore[override]
        return {"mean": "gap"}.get(self.pooling, self.pooling)

    def setup(self) -> None:
        if self.projection and self.text_encoder is not None:
            self.text_projection = self.dense(self.projection, self.text_encoder)
        if self.image_encoder is not None and self.text_encoder is not None:
            self.temperature = self.number("temperature", 1.0)

    def image_outputs(self, image: Float[Array, "b h w 3"], *, train: bool) -> dict[str, Any]:
        x = self.image_encoder(image, train=train)
        mean = lookup("pooling", self.pooling, {"mean": True, "max": False})
        pooled = x.mean(axis=1) if mean else x.max(axis=1)
        return {"last_hidden_state": x, "pooler_output": pooled, "image_embeds": pooled}

    def text_outputs(
        self, tokens: Any, text_mask: Any, token_types: Any, *, train: bool
    ) -> dict[str, Any]:
        x = self.text_encoder(tokens, text_mask, token_types, train=train)
        out = {"last_hidden_state": x}
        if self.pooler:
            out["pooler_output"] = self.text_encoder.pool(x)
        if self.projection:
            out["text_embeds"] = self.text_projection(x[:, 0])
        return out

    def scaled(self, cosines: Float[Array, "i t"]) -> Float[Array, "i t"]:
        return cosines / self.temperature


def build(**fields: Any) -> ALIGN:
    """An `ALIGN`; the encoders are keywords of `efficientnet` and `bert`."""
    return ALIGN(**built(fields, image_encoder=efficientnet.build, text_encoder=bert.build))
