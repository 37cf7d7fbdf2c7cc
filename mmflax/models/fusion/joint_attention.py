"""Joint representation: attention both ways beside both modalities, mixed by one map.

    J = W [A(v→l); A(l→v); V; L],   A(x→y) = softmax(Q_x K_y^T / sqrt(k)) V_y

V and L are the modalities after `depth` self-attention layers of their own, A multi-head attention
(Vaswani et al. 2017, sec. 3.2.2) from one to the other: what words mean for the image, and the
image for the words, stand beside what each is by itself. BiDAF (Seo et al. 2017, eq. 2) puts text
attended both ways beside the text likewise. A(v→l) and V have a row an image token, A(l→v) and L a
row a word: of the four, J takes one summary each; the streams that come back keep their rows,
`W_v [V; A(v→l)]` and `W_l [L; A(l→v)]`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.layers.attention import attention_mask
from mmflax.models.layers.blocks import MultiHeadAttention, dense
from mmflax.registry import make


class JointAttention(Fusion):
    """Fusion by a joint representation; `pooled` [b width] is J. A modality that is absent adds
    zeros to it, and so does attention to it or from it."""

    @nn.compact
    def fuse(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask, *, train: bool
    ) -> Fused:
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        image, text = self.embed(image, text, image_mask, text_mask)
        image = self.final_norm(self.layers("image_encoder")(image, to_image, train=train), "image")
        text = self.final_norm(self.layers("text_encoder")(text, to_text, train=train), "text")

        def read(x: Array, context: Array, mask: Array | None, name: str) -> Array:
            attend = MultiHeadAttention(self.layer, name=name)
            y = attend(x, context, mask=mask, train=train)
            return nn.Dropout(self.layer.dropout_rate)(y, deterministic=not train)

        image_reads = read(image, text, to_text, "image_reads")
        text_reads = read(text, image, to_image, "text_reads")
        parts = [
            self.summary(image_reads, image_mask, pool=self.image_pool),
            self.summary(text_reads, text_mask, pool=self.text_pool),
            self.summary(image, image_mask, pool=self.image_pool),
            self.summary(text, text_mask, pool=self.text_pool),
        ]
        pooled = dense(self.width, self.dtypes, name="joint")(jnp.concatenate(parts, axis=-1))

        def own(x: Array, reads: Array, name: str) -> Array:
            return dense(self.width, self.dtypes, name=name)(jnp.concatenate([x, reads], axis=-1))

        return Fused(
            own(image, image_reads, "image_joint"), own(text, text_reads, "text_joint"), pooled
        )


def build(**fields: Any) -> JointAttention:
    """A `JointAttention`; `fields` are its own."""
    return make(JointAttention, fields)
