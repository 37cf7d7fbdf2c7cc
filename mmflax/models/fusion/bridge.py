"""BridgeTower (Xu et al. 2023, "BridgeTower"): every fusion layer reads an encoder layer.

For fusion layer i = 1 … depth, with V_i and T_i the outputs of the last `depth` layers of the image
and the text encoder, e type embeddings, and Z the streams (Z_0 = 0):

    X^V_i = LayerNorm(Z^V_{i-1} + W_V V_i + e_1)     X^T_i = LayerNorm(Z^T_{i-1} + W_T T_i + e_0)
    Z_i = co-attention layer(X^V_i, X^T_i)

The bridge is the paper's "Add & Norm", the one its ablation prefers; W_V and W_T are shared by all
layers and the bridges are not, as in the released code. The co-attention layers are METER's. `link`
names what the released code offers beside it, from layer 2 on: "scaled_add", `s_i (W V_i + e) + Z`,
and "interpolate", `(1 - s_i) (W V_i + e) + s_i Z`, with a learned number s_i for each bridge.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.base import Fusion, ImageType, Mask
from mmflax.models.fusion.co_attention import CoAttentionLayer
from mmflax.models.layers.attention import attention_mask
from mmflax.models.layers.blocks import LayerNorm, lookup
from mmflax.registry import make

# link -> what its numbers start at; None has none.
LINKS: dict[str, float | None] = {"add": None, "scaled_add": 1.0, "interpolate": 0.5}


class Bridged(NamedTuple):
    """`Fused`, and the encoders' last layers as the fusion read them: projected, typed."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b t d"]
    pooled: Float[Array, "b e"]
    image_read: Float[Array, "b n d"]
    text_read: Float[Array, "b t d"]


class BridgeLayer(CoAttentionLayer):
    """A co-attention layer behind two bridges.

    `each` holds this layer's (image, text), times what the link says, and how much of (Z^V, Z^T)
    stays, None for all of it. `bridge_epsilon` is the bridges' own; None takes `epsilon`.
    """

    bridge_epsilon: float | None = None

    @nn.compact
    def __call__(  # type: ignore[override]
        self,
        streams: tuple[Float[Array, "b n d"], Float[Array, "b t d"]],
        image_mask: Bool[Array, "b 1 1 n"] | None = None,
        text_mask: Bool[Array, "b 1 1 t"] | None = None,
        *,
        each: tuple[
            Float[Array, "b n d"],
            Float[Array, "b t d"],
            Float[Array, ""] | None,
            Float[Array, ""] | None,
        ],
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        norm = self.config.norm
        if self.bridge_epsilon is not None:
            norm["epsilon"] = self.bridge_epsilon

        def bridge(x: Array, layer: Array, stays: Array | None, name: str) -> Array:
            x = x if stays is None else x * stays
            return LayerNorm(name=name, **norm)(x + layer)

        image = bridge(streams[0], each[0], each[2], "image_bridge")
        text = bridge(streams[1], each[1], each[3], "text_bridge")
        return super().__call__(
            (image, text), image_mask, text_mask, drop_path=drop_path, train=train
        )


class Bridge(Fusion):
    """Fusion that reads the encoders' last `depth` layers; each encoder must have that many.

    `image` and `text` themselves are the last of those layers, so they are not read again.
    `pooled` [b 2*width] is of both streams. `bridge_epsilon` is that of the bridges' norms; None
    takes `epsilon`. With `share_projections=False` every layer has a W_V and W_T of its own.
    `image_type` of a call is the image's row of `num_types` types, one for all or [b].
    """

    bridge_epsilon: float | None = None
    link: str = "add"
    share_projections: bool = True
    num_types: int = 2

    @property
    def num_layers_read(self) -> int:
        """One layer of each encoder for every fusion layer."""
        return self.depth

    @nn.compact
    def fuse(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        *,
        image_layers: tuple[Float[Array, "b n i"], ...] = (),
        text_layers: tuple[Float[Array, "b t j"], ...] = (),
        image_type: ImageType = 1,
        train: bool,
    ) -> Bridged:
        for name, layers in (("image_layers", image_layers), ("text_layers", text_layers)):
            if len(layers) != self.depth:
                raise MmflaxError(
                    f"bridge has {self.depth} layers and was given {len(layers)} {name}; give as "
                    "many (call the encoders with layers=…, as VisionLanguageModel does)."
                )
        image_row, text_row = self.types(image_type)
        images = self.read("image", image_layers, image_mask) + image_row[None]
        texts = self.read("text", text_layers, text_mask) + text_row[None]
        image_read, text_read = images[-1], texts[-1]
        start = jnp.zeros_like(image_read), jnp.zeros_like(text_read)
        images, image_stays = self.linked("image", images)
        texts, text_stays = self.linked("text", texts)
        image, text = self.layers("encoder", BridgeLayer, bridge_epsilon=self.bridge_epsilon)(
            start,
            attention_mask(image_mask),
            attention_mask(text_mask),
            each=(images, texts, image_stays, text_stays),
            train=train,
        )
        image, text = self.final_norm(image, "image"), self.final_norm(text, "text")
        pooled = self.pool_pair(image, text, image_mask, text_mask)
        return Bridged(image, text, pooled, image_read, text_read)

    def read(self, modality: str, layers: tuple[Array, ...], mask: Array | None) -> Array:
        """An encoder's layers [k b s d], projected."""
        if self.share_projections:
            project = self.project(modality)
            return jnp.stack([project(x, mask) for x in layers])
        projects = [self.project(f"{modality}_{i}") for i in range(len(layers))]
        return jnp.stack([project(x, mask) for project, x in zip(projects, layers, strict=True)])

    def linked(self, modality: str, layers: Array) -> tuple[Array, Array | None]:
        """The layers [k b s d] times their numbers, and how much of Z stays [k]; None for all."""
        start = lookup("link", self.link, LINKS)
        if start is None:
            return layers, None
        dtype = self.layer.param_dtype
        numbers = [
            self.param(f"{modality}_bridge_{i}_scale", nn.initializers.constant(start), (), dtype)
            for i in range(1, self.depth)
        ]
        first = jnp.ones((), dtype)  # the first bridge has nothing to weigh against
        if self.link == "scaled_add":
            own, stays = jnp.stack([first, *numbers]), None
        else:
            own = jnp.stack([first, *(1 - x for x in numbers)])
            stays = jnp.stack([first, *numbers]).astype(layers.dtype)
        return layers * own.astype(layers.dtype)[:, None, None, None], stays


def build(**fields: Any) -> Bridge:
    """A `Bridge`; `fields` are its own."""
    return make(Bridge, fields)
