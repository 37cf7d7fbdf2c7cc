"""BridgeTower (Xu et al. 2023, "BridgeTower"): every fusion layer reads an encoder layer.

For fusion layer i = 1 … depth, with V_i and T_i the outputs of the last `depth` layers of the image
and the text encoder, e type embeddings, and Z the streams (Z_0 = 0):

    X^V_i = LayerNorm(Z^V_{i-1} + W_V V_i + e_1)     X^T_i = LayerNorm(Z^T_{i-1} + W_T T_i + e_0)
    Z_i = co-attention layer(X^V_i, X^T_i)

The bridge is the paper's "Add & Norm", the one its ablation prefers; W_V and W_T are shared by all
layers and the bridges are not, as in the released code. The co-attention layers are METER's.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.base import Fused, Fusion
from mmflax.models.fusion.co_attention import CoAttentionLayer
from mmflax.models.layers import LayerNorm
from mmflax.models.masks import attention_mask


class BridgeLayer(CoAttentionLayer):
    """A co-attention layer behind two bridges; `each` holds this layer's (W_V V_i + e_1, …)."""

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        streams: tuple[Float[Array, "b n d"], Float[Array, "b t d"]],
        image_mask: Bool[Array, "b 1 1 n"] | None = None,
        text_mask: Bool[Array, "b 1 1 t"] | None = None,
        *,
        each: tuple[Float[Array, "b n d"], Float[Array, "b t d"]],
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        def bridge(x: Array, layer: Array, name: str) -> Array:
            return LayerNorm(
                epsilon=self.epsilon, name=name, dtype=self.dtype, param_dtype=self.param_dtype
            )(x + layer)

        image = bridge(streams[0], each[0], "image_bridge")
        text = bridge(streams[1], each[1], "text_bridge")
        return super().__call__(
            (image, text), image_mask, text_mask, drop_path=drop_path, train=train
        )


class Bridge(Fusion):
    """Fusion that reads the encoders' last `depth` layers; each encoder must have that many.

    `image` and `text` themselves are the last of those layers, so they are not read again.
    `pooled` [b 2*width] is of both streams.
    """

    @property
    def num_layers_read(self) -> int:
        """Layers that `VisionLanguageModel` asks of each encoder."""
        return self.depth

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t j"],
        image_mask: Bool[Array, "b n"] | None = None,
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        image_layers: tuple[Float[Array, "b n i"], ...] = (),
        text_layers: tuple[Float[Array, "b t j"], ...] = (),
        causal: bool = False,
        train: bool,
    ) -> Fused:
        self.refuse(causal, "the image stream carries later words back to earlier ones")
        for name, found in (("image_layers", image_layers), ("text_layers", text_layers)):
            if len(found) != self.depth:
                raise MmflaxError(
                    f"bridge has {self.depth} layers and was given {len(found)} {name}; give as "
                    "many (call the encoders with layers=…, as VisionLanguageModel does)."
                )
        image_type, text_type = self.types()
        # [k b s d]: the encoders' layers share one projection.
        enter_image, enter_text = self.entrance("image"), self.entrance("text")
        images = jnp.stack([enter_image(x, image_mask) + image_type for x in image_layers])
        texts = jnp.stack([enter_text(x, text_mask) + text_type for x in text_layers])
        start = jnp.zeros_like(images[0]), jnp.zeros_like(texts[0])
        image, text = self.stack("encoder", BridgeLayer)(
            start,
            attention_mask(image_mask),
            attention_mask(text_mask),
            each=(images, texts),
            train=train,
        )
        image, text = self.leave(image, "image"), self.leave(text, "text")
        return Fused(image, text, self.pool_pair(image, text, image_mask))


def build(**fields: Any) -> Bridge:
    """A `Bridge`; `fields` are its own."""
    return Bridge(**fields)
