"""The memory of a decoder: streams of encoders and fusion, side by side."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import zero_masked
from mmflax.models.layers.blocks import constrain_batch, dense, embedding_table
from mmflax.models.layers.config import Typed
from mmflax.models.vision_language import Encoded

# What a memory may hold, and the streams each is made of.
SOURCES = {
    "image": ("image",), "text": ("text",), "fused": ("fused_image", "fused_text"),
    "fused_text": ("fused_text",),
}  # fmt: skip


class Memory(Typed):
    """Streams side by side, each projected to `width`, with a type embedding.

    `sources` are any of "image" (the image encoder's tokens), "text" (the text encoder's tokens),
    "fused" (both streams after fusion) and "fused_text" (the text's alone). Masked tokens are
    zeroed on entry and masked in the result, so of an absent modality no value and no gradient
    passes. With `projected=False` one stream goes on as it is, in its own width, without a type
    (BLIP); there are no parameters then.
    """

    width: int
    sources: tuple[str, ...] = ("fused",)
    projected: bool = True

    @nn.compact
    def __call__(self, encoded: Encoded) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        names = [name for source in check_sources(self.sources) for name in SOURCES[source]]
        dtypes = self.dtypes
        if not self.projected:
            if len(names) > 1:
                raise MmflaxError(
                    f"memory is {list(self.sources)}, {len(names)} streams, and "
                    "memory_projected=False takes one as it is; give "
                    "--config.task.memory_projected=True, or one of image, text, fused_text."
                )
            x, mask = _stream(encoded, names[0])
            x = zero_masked(x.astype(dtypes["dtype"] or dtypes["param_dtype"]), mask)
            return constrain_batch(x), mask
        types = embedding_table(len(names), self.width, dtypes, name="type_embedding")(
            jnp.arange(len(names))
        )
        parts, masks = [], []
        for i, name in enumerate(names):
            x, mask = _stream(encoded, name)
            x = zero_masked(x.astype(dtypes["dtype"] or dtypes["param_dtype"]), mask)
            x = dense(self.width, dtypes, name=f"{name}_projection")(x)
            parts.append(x + types[None, None, i])
            masks.append(mask)
        return constrain_batch(jnp.concatenate(parts, axis=1)), jnp.concatenate(masks, axis=1)


def _stream(encoded: Encoded, name: str) -> tuple[Array, Array]:
    if name == "image":
        return encoded.image_tokens, encoded.image_mask
    if name == "text":
        return encoded.text_tokens, encoded.text_mask
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
