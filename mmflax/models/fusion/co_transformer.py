"""ViLBERT's fusion (Lu et al. 2019): co-attentional layers between self-attention layers.

Two streams, each of a width of its own. A connection reads across, with image V and text T as they
were before it, and W_o back from the inner width that both share:

    V' = LN(V + W_o softmax(Q_V K_T^T / sqrt(k)) V_T)     V = LN(V' + MLP(V'))
    T' = LN(T + W_o softmax(Q_T K_V^T / sqrt(k)) V_V)     T = LN(T' + MLP(T'))

After each connection come the self-attention layers of each stream up to the next one; what lies
before the first connection is the encoders'. The pair is summarized by W_V v * W_T t, each through
a ReLU, of the first tokens v and t (or by their sum).
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.heads import pool_tokens
from mmflax.models.layers.attention import attention_mask
from mmflax.models.layers.blocks import Block, Pooler, lookup
from mmflax.models.layers.config import LayerConfig
from mmflax.models.layers.stack import Stack
from mmflax.registry import make

POOLS = {"mul": jnp.multiply, "sum": jnp.add}


class Connection(nn.Module):
    """Both streams read each other once, then each its own MLP."""

    image: LayerConfig
    text: LayerConfig
    qkv_dim: int

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t d"],
        image_mask: Bool[Array, "b 1 1 n"] | None,
        text_mask: Bool[Array, "b 1 1 t"] | None,
        *,
        train: bool,
    ) -> tuple[Float[Array, "b n i"], Float[Array, "b t d"]]:
        kind: Any = dict(self_attention=False, cross_attention=True, qkv_dim=self.qkv_dim)
        return (
            Block(self.image, **kind, name="image")(image, None, text, text_mask, train=train),
            Block(self.text, **kind, name="text")(text, None, image, image_mask, train=train),
        )


class CoTransformer(Fusion):
    """`depth` connections; `pooled` [b inner_width].

    `width`, `num_heads`, `mlp_dim` are the text's, `image_width`, `image_heads`, `image_mlp_dim`
    the image's, `inner_width` and `inner_heads` those of the connections' attention; each is by
    default the text's. `image_depths` and `text_depths` count the self-attention layers after each
    connection: by default one. A stream is projected on entry only if its width is another.
    """

    image_width: int | None = None
    image_heads: int | None = None
    image_mlp_dim: int | None = None
    image_activation: str | None = None
    inner_width: int | None = None
    inner_heads: int | None = None
    image_depths: tuple[int, ...] | None = None
    text_depths: tuple[int, ...] | None = None
    pool: str = "mul"

    @nn.compact
    def fuse(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask, *, train: bool
    ) -> Fused:
        combine = lookup("pool", self.pool, POOLS)
        image_width = self.image_width or self.width
        inner = self.inner_width or self.width
        text_config = self.layer
        image_config = dataclasses.replace(
            text_config,
            num_heads=self.image_heads or text_config.num_heads,
            mlp_dim=self.image_mlp_dim,
            activation=self.image_activation or text_config.activation,
        )
        heads = self.inner_heads or text_config.num_heads
        across_image = dataclasses.replace(image_config, num_heads=heads)
        across_text = dataclasses.replace(text_config, num_heads=heads)
        image = self.match_width("image", image, image_mask, image_width)
        text = self.match_width("text", text, text_mask, self.width)
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        depths = zip(
            range(self.depth),
            self._depths("image_depths", self.image_depths),
            self._depths("text_depths", self.text_depths),
            strict=True,
        )
        for i, image_depth, text_depth in depths:
            connection = Connection(across_image, across_text, inner, name=f"connection_{i}")
            image, text = connection(image, text, to_image, to_text, train=train)
            image_stack = self._stack(f"image_{i}", image_depth, image_config)
            image = image_stack(image, to_image, train=train)
            text = self._stack(f"text_{i}", text_depth, text_config)(text, to_text, train=train)
        image, text = self.final_norm(image, "image"), self.final_norm(text, "text")
        image_vector = pool_tokens(image, image_mask, pool=self.image_pool)
        text_vector = pool_tokens(text, text_mask, pool=self.text_pool)
        pooled = combine(
            Pooler(inner, "relu", name="image_pooler", **self.dtypes)(image_vector),
            Pooler(inner, "relu", name="text_pooler", **self.dtypes)(text_vector),
        )
        return Fused(image, text, pooled)

    def _stack(self, name: str, depth: int, config: LayerConfig) -> Stack:
        stack = dataclasses.replace(self.stack, depth=depth)
        return Stack(functools.partial(Block, config), stack, name=name)

    def _depths(self, name: str, given: tuple[int, ...] | None) -> tuple[int, ...]:
        depths = (1,) * self.depth if given is None else given
        if len(depths) != self.depth:
            raise MmflaxError(
                f"{name} has {len(depths)} numbers; expected one for each of the {self.depth} "
                "connections: how many layers come after it."
            )
        return depths


def build(**fields: Any) -> CoTransformer:
    """A `CoTransformer`; `fields` are its own."""
    return make(CoTransformer, fields)
