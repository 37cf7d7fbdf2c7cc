"""What every kind of fusion has in common: its fields, how streams enter and leave, and pooling.

A fusion is called as `(image, text, image_mask, text_mask, *, train)` and gives `Fused`. The fields
here mean the same in every kind, so that a config changes the kind by its `name` alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.heads import POOLS, pool_tokens
from mmflax.models.layers.attention import zero_masked
from mmflax.models.layers.blocks import (
    NORM_STYLES,
    Block,
    LayerNorm,
    Pooler,
    constrain_batch,
    dense,
    embedding_table,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Layered, StackConfig
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat

Mask = Bool[Array, "b _"] | None  # of one stream; None: every token is used
# Which row of a fusion's table of types the images have: one for all, or each its own.
ImageType = int | Int[Array, "b"]


class Fused(NamedTuple):
    """Both streams after fusion, and one vector for the pair."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b t d"]
    pooled: Float[Array, "b e"]


class FusionBase(nn.Module):
    """Base of every fusion: a default for every attribute of `models/contracts.py`."""

    num_types = 2

    @property
    def num_layers_read(self) -> int:
        """Layers of each encoder that this fusion reads besides their tokens."""
        return 0

    @property
    def supports_causal(self) -> bool:
        """Whether `causal=True` keeps later words from reaching earlier ones."""
        return False


class Fusion(FusionBase, Layered):
    """The fields of every kind; a kind adds its own and `fuse`.

    Masks are true where a token is used; None uses all. Masked tokens are zeroed on entry, so an
    all-false mask makes a modality absent: no value and no gradient passes, and whatever is
    averaged or attended to is averaged over what is there. `image_pool` "cls" pools the first image
    token, "gap" the mean of those used (for an encoder without CLS); `text_pool` likewise the
    words, which no layer then has to gather into the first.
    """

    width: int
    layer: LayerConfig = flat(LayerConfig, without=("qkv_bias",), norm_style="post", epsilon=1e-12)
    stack: StackConfig = flat(StackConfig)
    image_pool: str = "cls"
    text_pool: str = "cls"

    @property
    def depth(self) -> int:
        """Layers of the fusion."""
        return self.stack.depth

    @property
    def num_heads(self) -> int:
        """Heads of its attention."""
        return self.layer.num_heads

    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t j"],
        image_mask: Bool[Array, "b n"] | None = None,
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        causal: bool = False,
        train: bool,
        **inputs: Any,
    ) -> Any:
        """`Fused` of both streams; `inputs` are those that this kind takes besides."""
        for name, value in (("image_pool", self.image_pool), ("text_pool", self.text_pool)):
            lookup(name, value, dict.fromkeys(POOLS))
        if causal and not self.supports_causal:
            raise MmflaxError(
                f"{type(self).__name__} was asked for causal=True, but its image stream or summary "
                "carries later words back to earlier ones; use cross_attention or "
                "merged_attention, or generate with a decoder that cross-attends."
            )
        if causal:
            inputs["causal"] = True
        return self.fuse(image, text, image_mask, text_mask, train=train, **inputs)

    def fuse(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask, *, train: bool
    ) -> Any:
        """`__call__` of a kind; one that `supports_causal` takes `causal` too."""
        raise NotImplementedError

    def project(self, modality: str) -> Callable[[Array, Array | None], Array]:
        """`(x[b s ?], mask) -> [b s d]`: without its masked tokens, projected."""
        project = dense(self.width, self.dtypes, name=f"{modality}_projection")
        return lambda x, mask: constrain_batch(project(zero_masked(x, mask)))

    def match_width(self, modality: str, x: Array, mask: Array | None, width: int) -> Array:
        """A stream [b s ?] without its masked tokens, projected only if its width is another."""
        x = zero_masked(x, mask)
        if x.shape[-1] != width:
            x = dense(width, self.dtypes, name=f"{modality}_projection")(x)
        dtype = self.layer.dtype
        return constrain_batch(x if dtype is None else x.astype(dtype))

    def embed(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        image_type: ImageType = 1,
    ) -> tuple[Array, Array]:
        """Both streams, projected, each with its type.

        The type also keeps an absent modality's tokens off the zero vector, where a layer norm of
        BERT's epsilon has a slope of a million.
        """
        image_row, text_row = self.types(image_type)
        return (
            self.project("image")(image, image_mask) + image_row,
            self.project("text")(text, text_mask) + text_row,
        )

    def types(self, image: ImageType = 1) -> tuple[Array, Array]:
        """Type embeddings of (image, text): rows `image` and 0 of the table, as in METER.

        [1 1 d] each, or where `image` is a row for every example [b 1 d] of the image.
        """
        rows = jnp.arange(self.num_types)
        table = embedding_table(len(rows), self.width, self.dtypes, name="type_embedding")(rows)
        return table[jnp.atleast_1d(image)][:, None], table[None, None, 0]

    def layers(self, name: str, layer: Callable[..., nn.Module] = Block, **fields: Any) -> Stack:
        """The stack of this fusion's layers; `fields` are of `layer`."""
        return Stack(functools.partial(layer, self.layer, **fields), self.stack, name=name)

    def final_norm(self, x: Array, modality: str) -> Array:
        """Pre-norm layers end in an unnormalized sum: normalize it."""
        if not lookup("norm_style", self.layer.norm_style, NORM_STYLES):
            return x
        return LayerNorm(name=f"{modality}_norm", **self.layer.norm)(x)

    def summary(
        self, x: Array, mask: Bool[Array, "b s"] | None, *, pool: str, absent: float = 0.0
    ) -> Float[Array, "b d"]:
        """One vector a row of [b s d] tokens, `absent` everywhere for a row with none in use."""
        vector = pool_tokens(x, mask, pool=pool)
        if mask is None:
            return vector
        return jnp.where(mask.any(axis=1)[:, None], vector, jnp.full_like(vector, absent))

    def pool_text(self, text: Array, text_mask: Mask) -> Float[Array, "b d"]:
        """BERT's tanh pooler over the pooled words."""
        pooled = pool_tokens(text, text_mask, pool=self.text_pool)
        return Pooler(self.width, name="text_pooler", **self.dtypes)(pooled)

    def pool_pair(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask
    ) -> Float[Array, "b e"]:
        """METER's summary [b 2*width]: the tanh poolers of [text, image] side by side."""
        first = self.pool_text(text, text_mask)
        second = Pooler(self.width, name="image_pooler", **self.dtypes)(
            pool_tokens(image, image_mask, pool=self.image_pool)
        )
        return jnp.concatenate([first, second], axis=-1)
