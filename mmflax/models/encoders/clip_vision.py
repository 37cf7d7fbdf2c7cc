"""CLIP's image encoder (Radford et al. 2021, arXiv:2103.00020): a `ViT` with CLIP's fields.

It differs from the Vision Transformer in a norm before the first layer, patches without a bias,
QuickGELU (the LAION models have GELU) and epsilon 1e-5. Every token leaves through the last norm,
as METER and BridgeTower read them; CLIP itself reads the first token only.
"""

import functools

from mmflax.models.encoders import vit

# Variants "B/32", "B/16", "L/14" … are those of `vit`.
build = functools.partial(
    vit.build,
    pool="cls",
    pre_norm=True,
    patch_bias=False,
    activation="quick_gelu",
    epsilon=1e-5,
)
