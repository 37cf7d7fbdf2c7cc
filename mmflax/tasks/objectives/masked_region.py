"""Masked region modelling: a detector's features and labels of hidden regions.

UNITER (Chen et al. 2020, sec. 3.2, MRFR and MRC-kl) and LXMERT (Tan & Bansal 2019, sec. 3.1.2). The
batch brings what a detector found: `regions` [b r f] features, and if there `boxes` [b r 4]
(corners, 0..1), `region_mask` [b r] (true = a region), `region_scores` [b r c] (class
probabilities). Regions take the place of the image tokens in the fusion, so their words are the
clean pass's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.losses.masked import masked_feature_loss, masked_region_kl
from mmflax.models.layers.blocks import KERNEL_INIT, TABLE_INIT, LayerNorm
from mmflax.tasks.objectives.objective import Objective, Reading, draw_key
from mmflax.tasks.task import Batch, Outputs


class MaskedRegions(nn.Module):
    """`features` [b r f] and, where the batch has scores, `logits` [b r c] of every region; and
    `chosen` [b r]: the hidden."""

    rate: float

    @nn.compact
    def __call__(self, reading: Reading, *, train: bool) -> Outputs:
        regions = reading.require("masked_region", "regions")
        batch, width = reading.batch, reading.encoded.patches.shape[-1]
        mask = batch.get("region_mask")
        mask = jnp.ones(regions.shape[:2], bool) if mask is None else mask
        draw = jax.random.uniform(draw_key(self, train), mask.shape)
        least = jnp.where(mask, draw, 2.0).min(axis=1, keepdims=True)
        chosen = mask & ((draw < self.rate) | (draw == least))
        # LXMERT, sec. 2.1: features and boxes, each normalised, in equal parts; hidden = zeros.
        x = jnp.where(chosen[..., None], jnp.zeros_like(regions), regions)
        x = nn.Dense(width, kernel_init=KERNEL_INIT, name="region_projection")(x)
        x = LayerNorm(epsilon=1e-12, name="region_norm")(x)
        if batch.get("boxes") is not None:
            table = self.param("box_embedding", TABLE_INIT, (4, width), jnp.float32)
            boxes = jnp.einsum("brk,kd->brd", batch["boxes"], table.astype(x.dtype))
            x = (x + LayerNorm(epsilon=1e-12, name="box_norm")(boxes)) / 2
        fused = reading.fuse(image=x, image_mask=mask, train=train)

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, kernel_init=KERNEL_INIT, name=name)

        outputs = {
            "features": dense(regions.shape[-1], "features")(fused.image),
            "chosen": chosen,
        }
        if batch.get("region_scores") is not None:
            outputs["logits"] = dense(batch["region_scores"].shape[-1], "labels")(fused.image)
        return outputs


def build(
    *, rate: float = 0.15, feature_weight: float = 1.0, label_weight: float = 1.0
) -> Objective:
    """`rate` of the regions is hidden, at least one. The features' squared error and, where the
    batch has `region_scores`, their KL are added with these weights.

    Metric: `masked_region_accuracy`, how often the detector's best label scores highest.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        chosen = outputs["chosen"]
        total = feature_weight * masked_feature_loss(outputs["features"], batch["regions"], chosen)
        if "logits" in outputs:
            labels = masked_region_kl(outputs["logits"], batch["region_scores"], chosen)
            total = total + label_weight * labels
        return total

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        if "logits" not in outputs:
            return {}
        chosen = outputs["chosen"]
        best = outputs["logits"].argmax(axis=-1) == batch["region_scores"].argmax(axis=-1)
        counts = tuple(x.sum(axis=1, dtype=jnp.float32) for x in (chosen & best, chosen))
        return {"masked_region_accuracy": counts}

    return Objective(MaskedRegions(rate), loss, metrics)
