"""CLIP's image encoder (Radford et al. 2021, arXiv:2103.00020): a `ViT` with CLIP's fields.

It differs from the Vision Transformer in a norm before the first layer, patches without a bias,
QuickGELU (the LAION models have GELU) and epsilon 1e-5. Every token leaves through the last norm,
as METER and BridgeTower read them; CLIP itself reads the first token only.
"""

from typing import Any

from mmflax.models.encoders import vit
from mmflax.models.encoders.vit import ViT


def build(
    *,
    image_size: int | tuple[int, int],
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    patch_size: int | None = None,
    pool: str = "cls",
    pre_norm: bool = True,
    patch_bias: bool = False,
    activation: str = "quick_gelu",
    epsilon: float = 1e-5,
    dtype: Any = None,
    param_dtype: Any = "float32",
    **fields: Any,
) -> ViT:
    """A `ViT` as CLIP's; `variant` "B/32", "B/16", "L/14" … as those of `vit`."""
    return vit.build(
        image_size=image_size,
        variant=variant,
        width=width,
        depth=depth,
        num_heads=num_heads,
        mlp_dim=mlp_dim,
        patch_size=patch_size,
        pool=pool,
        pre_norm=pre_norm,
        patch_bias=patch_bias,
        activation=activation,
        epsilon=epsilon,
        dtype=dtype,
        param_dtype=param_dtype,
        **fields,
    )
