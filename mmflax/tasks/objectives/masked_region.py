"""Masked region modeling: a detector's features and classes of hidden regions.

UNITER (Chen et al. 2020, sec. 3.2, MRFR and MRC-kl) and LXMERT (Tan & Bansal 2019, sec. 3.1.2), for
an image encoder of regions. Hidden features are zeros, to which the encoder adds its own
`mask_embedding` where it has one (UNITER); boxes stay. The words are the clean pass's.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.losses.masked import masked_feature_loss, masked_region_kl
from mmflax.models.encoders.regions import join_regions
from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.tasks.inputs import of_regions
from mmflax.tasks.objectives.objective import CleanPass, Objective, draw_key
from mmflax.tasks.task import Batch, Outputs


class MaskedRegions(nn.Module):
    """`features` [b r f] and, where the batch has `region_labels`, `logits` [b r k] of every
    region; and `chosen` [b r]: the hidden ones."""

    rate: float

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        encoder: Any = clean.backbone.image_encoder
        if not of_regions(clean.backbone):
            raise MmflaxError(
                "The objective 'masked_region' hides regions from an image encoder of regions, and "
                f"{type(encoder).__name__} reads pixels; give "
                "--config.model.image_encoder.name=regions, "
                "or --config.task.objectives.masked_region=None."
            )
        batch, mask = clean.batch, clean.encoded.image_mask
        regions = clean.require("masked_region", "regions")
        draw = jax.random.uniform(draw_key(self, train), mask.shape)
        least = jnp.where(mask, draw, 2.0).min(axis=1, keepdims=True)
        chosen = mask & ((draw < self.rate) | (draw == least))
        visible = jnp.where(chosen[..., None], jnp.zeros_like(regions), regions)
        masked = {"masked": chosen} if encoder.mask_embedding else {}
        image = encoder(join_regions(visible, batch.get("boxes")), mask, train=train, **masked)
        fused = clean.fuse(image=image, train=train)

        def dense(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, kernel_init=KERNEL_INIT, name=name)

        outputs = {
            "features": dense(regions.shape[-1], "features")(fused.image),
            "chosen": chosen,
        }
        if batch.get("region_labels") is not None:
            outputs["logits"] = dense(batch["region_labels"].shape[-1], "labels")(fused.image)
        return outputs


def build(
    *, rate: float = 0.15, feature_weight: float = 1.0, label_weight: float = 1.0
) -> Objective:
    """`rate` of the regions is hidden, at least one. The features' squared error and, where the
    batch has `region_labels`, their KL are added with these weights.

    Metric: `masked_region_accuracy`, how often the detector's best class scores highest.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        chosen = outputs["chosen"]
        total = feature_weight * masked_feature_loss(outputs["features"], batch["regions"], chosen)
        if "logits" in outputs:
            labels = masked_region_kl(outputs["logits"], batch["region_labels"], chosen)
            total = total + label_weight * labels
        return total

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        if "logits" not in outputs:
            return {}
        chosen = outputs["chosen"]
        best = outputs["logits"].argmax(axis=-1) == batch["region_labels"].argmax(axis=-1)
        counts = tuple(x.sum(axis=1, dtype=jnp.float32) for x in (chosen & best, chosen))
        return {"masked_region_accuracy": counts}

    return Objective(MaskedRegions(rate), loss, metrics)
