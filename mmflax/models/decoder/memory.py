"""What a decoder looks at while it writes: streams of encoders and fusion, side by side."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import KERNEL_INIT, TABLE_INIT, as_dtype, constrain_batch
from mmflax.models.layers.masks import zero_masked
from mmflax.models.vision_language import Encoded

# What a decoder may look at, and the streams each is made of.
SOURCES = {"image": ("image",), "text": ("text",), "fused": ("fused_image", "fused_text")}


class Memory(nn.Module):
    """What the decoder looks at, side by side: streams projected to `width`, with a type each.

    `sources` are any of "image" (the image encoder's tokens), "text" (the text encoder's tokens)
    and "fused" (both streams after fusion). Masked tokens are zeroed on entry and masked in the
    result, so of an absent modality no value and no gradient passes.
    """

    width: int
    sources: tuple[str, ...] = ("fused",)
    dtype: Any = None
    param_dtype: Any = "float32"

    @nn.compact
    def __call__(self, encoded: Encoded) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        names = [name for source in check_sources(self.sources) for name in SOURCES[source]]
        kinds = dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))
        types = nn.Embed(
            len(names), self.width, embedding_init=TABLE_INIT, name="type_embedding", **kinds
        )(jnp.arange(len(names)))
        parts, masks = [], []
        for i, name in enumerate(names):
            x, mask = _stream(encoded, name)
            dense = nn.Dense(
                self.width, kernel_init=KERNEL_INIT, name=f"{name}_projection", **kinds
            )
            x = x.astype(kinds["dtype"] or kinds["param_dtype"])
            parts.append(dense(zero_masked(x, mask)) + types[None, None, i])
            masks.append(mask)
        return constrain_batch(jnp.concatenate(parts, axis=1)), jnp.concatenate(masks, axis=1)


def _stream(encoded: Encoded, name: str) -> tuple[Array, Array]:
    if name == "image":
        return encoded.patches, encoded.image_mask
    if name == "text":
        return encoded.words, encoded.text_mask
    if name == "fused_image":
        return encoded.image, encoded.image_mask
    return encoded.text, encoded.text_mask


def check_sources(sources: Sequence[str]) -> tuple[str, ...]:
    """`sources` as a tuple of known names."""
    sources = (sources,) if isinstance(sources, str) else tuple(sources)
    if not sources or len(set(sources)) < len(sources) or set(sources) - set(SOURCES):
        raise MmflaxError(
            f"memory is {list(sources)}; expected one or more of {', '.join(SOURCES)}, each once."
        )
    return sources
