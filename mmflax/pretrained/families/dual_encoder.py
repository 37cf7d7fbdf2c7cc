"""What CLIP, SigLIP and ALIGN share: image and text become vectors, and their cosine is scaled.

A family says how each side becomes one vector and how cosines become logits. One side may be
missing: then the other gives its vectors as they are, as transformers' models of one side do.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import dense
from mmflax.numerics import unit
from mmflax.pretrained.families.base import image_zeros, text_zeros


class DualEncoder(nn.Module):
    """`image` and/or `tokens` (with `text_mask`, `token_types`) to a dict.

    With both encoders: `image_embeds` [b e] and `text_embeds` [b e] of unit length, each where the
    batch has what it needs, and where it has both `logits_per_image` [b b] and its transpose
    `logits_per_text`. With one: `last_hidden_state`, `pooler_output` and what the family adds.

    Attributes:
      exclusive: whether the logits of an image compete (softmax) or stand alone (sigmoid).
      image_pool, text_pool: how each side becomes one vector, as the task `retrieval` names it.
    """

    image_encoder: Any = None
    text_encoder: Any = None

    exclusive: ClassVar[bool] = True
    image_pool: ClassVar[str] = "cls"
    text_pool: ClassVar[str] = "encoder"

    def image_outputs(self, image: Float[Array, "b h w 3"], *, train: bool) -> dict[str, Any]:
        """`last_hidden_state`, `pooler_output` …; `image_embeds` where a pair needs it."""
        raise NotImplementedError

    def text_outputs(
        self,
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"] | None,
        token_types: Int[Array, "b t"] | None,
        *,
        train: bool,
    ) -> dict[str, Any]:
        """`last_hidden_state`, `pooler_output` …; `text_embeds` where a pair needs it."""
        raise NotImplementedError

    def scaled(self, cosines: Float[Array, "i t"]) -> Float[Array, "i t"]:
        """The family's logits of cosines."""
        raise NotImplementedError

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        if self.image_encoder is not None:
            batch |= image_zeros(self.image_encoder, rows)
        if self.text_encoder is not None:
            batch |= text_zeros(rows)
        return batch

    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        sides: dict[str, dict[str, Any]] = {}
        if self.image_encoder is not None and "image" in batch:
            sides["image"] = self.image_outputs(batch["image"], train=train)
        if self.text_encoder is not None and "tokens" in batch:
            sides["text"] = self.text_outputs(
                batch["tokens"], batch.get("text_mask"), batch.get("token_types"), train=train
            )
        if self.image_encoder is None or self.text_encoder is None:
            return next(iter(sides.values()))
        out = {
            f"{side}_embeds": unit(outputs[f"{side}_embeds"].astype(jnp.float32))
            for side, outputs in sides.items()
        }
        if len(out) == 2:
            out["logits_per_image"] = self.similarity(out["image_embeds"], out["text_embeds"])
            out["logits_per_text"] = out["logits_per_image"].T
        return out

    def similarity(
        self, image_embeds: Float[Array, "i e"], text_embeds: Float[Array, "t e"]
    ) -> Float[Array, "i t"]:
        """Logits of every image with every text, from embeddings of unit length."""
        sizes = image_embeds.shape[1], text_embeds.shape[1]
        if sizes[0] != sizes[1]:
            raise MmflaxError(
                f"an image becomes {sizes[0]} numbers and a text {sizes[1]}, which cannot be "
                "compared; expected the same, so correct the sizes of both sides in the config."
            )
        return self.scaled(image_embeds @ text_embeds.T)

    def dense(self, width: int, encoder: Any, **fields: Any) -> nn.Dense:
        """A projection that computes as `encoder` does."""
        return dense(width, encoder.dtypes, **fields)

    def number(self, name: str, value: float) -> Float[Array, ""]:
        """A learned number, float32 whatever computes the embeddings."""
        dtype = self.image_encoder.dtypes["param_dtype"]
        return self.param(name, nn.initializers.constant(value), (), dtype).astype(jnp.float32)
