"""Masked image modeling: the pixels of hidden patches from the visible ones and the text.

Pixels as the target and their normalization are MAE's (He et al. 2022, sec. 3), the learned filling
of hidden patches and one linear layer as decoder are SimMIM's (Xie et al. 2022, sec. 3). Where this
differs: the encoder is any image encoder, so what is learned is one patch of pixels to put in place
of hidden ones, not a token; and the fusion takes part, so that the text helps to fill.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.losses.masked import choose_positions, masked_patch_loss, patchify, unpatchify
from mmflax.models.layers.blocks import KERNEL_INIT, TABLE_INIT
from mmflax.tasks.objectives.objective import CleanPass, Objective, draw_key
from mmflax.tasks.task import Batch, Outputs


class MaskedPatches(nn.Module):
    """`predicted` and true `pixels` [b p q] of each grid cell, and `chosen` [b p]: the hidden."""

    ratio: float

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        image = clean.require("masked_patch", "image")
        encoder = clean.backbone.image_encoder
        grid = encoder.grid()
        pixels = patchify(image, grid)
        rows, cells, size = pixels.shape
        there = clean.encoded.image_mask[:, -cells:]  # what comes before the grid is CLS
        chosen = choose_positions(draw_key(self, train), (rows, cells), self.ratio) & there
        filling = self.param("mask_token", TABLE_INIT, (size,), jnp.float32)
        filling = filling.astype(pixels.dtype)[None, None]
        visible = unpatchify(jnp.where(chosen[..., None], filling, pixels), grid, image.shape[1:3])
        fused = clean.fuse(image=clean.encode_image(visible, train=train), train=train)
        dense = nn.Dense(size, kernel_init=KERNEL_INIT, name="pixels")
        predicted = dense(fused.image[:, -cells:])
        return {"predicted": predicted, "pixels": pixels, "chosen": chosen}


def build(*, ratio: float = 0.6, norm: str = "l2", normalize: bool = True) -> Objective:
    """`ratio` of the patches is hidden (SimMIM takes 0.6, MAE 0.75). `norm` "l2" with `normalize`
    is MAE's loss; "l1" without is SimMIM's."""
    if norm not in ("l1", "l2"):
        raise MmflaxError(f"task.objectives.masked_patch.norm is {norm!r}; expected l1 or l2.")
    if not 0.0 < ratio < 1.0:
        raise MmflaxError(
            f"task.objectives.masked_patch.ratio is {ratio}; expected a share between 0 and 1."
        )

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return masked_patch_loss(
            outputs["predicted"],
            outputs["pixels"],
            outputs["chosen"],
            norm=norm,
            normalize=normalize,
        )

    return Objective(MaskedPatches(ratio), loss)
