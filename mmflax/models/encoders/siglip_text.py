"""SigLIP's text encoder (Zhai et al. 2023, arXiv:2303.15343): CLIP's without the causal mask.

64 tokens, always padded to that length and read without a mask; the last one stands for the text.
GELU is the tanh form and epsilon 1e-6, as in big_vision.
"""

from typing import Any

from mmflax.models.encoders import clip_text
from mmflax.models.encoders.clip_text import CLIPText
from mmflax.models.encoders.vit import SIZES
from mmflax.models.layers.blocks import lookup


def build(
    *,
    vocab_size: int,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    max_length: int = 64,
    always_causal: bool = False,
    pooling: str = "last",
    activation: str = "gelu_tanh",
    epsilon: float = 1e-6,
    **fields: Any,
) -> CLIPText:
    """A `CLIPText` as SigLIP's; its variants "B" and "L" have the sizes of the image encoder's."""
    sizes: dict[str, Any] = dict(lookup("SigLIP text variant", variant, SIZES)) if variant else {}
    given = dict(width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim)
    sizes |= {name: value for name, value in given.items() if value is not None}
    return clip_text.build(
        vocab_size=vocab_size,
        **sizes,
        max_length=max_length,
        always_causal=always_causal,
        pooling=pooling,
        activation=activation,
        epsilon=epsilon,
        **fields,
    )
