"""Image-text matching: after fusion, do the image and the text belong together?

ALBEF (Li et al. 2021, sec. 3.2), see `mmflax.tasks.negatives`. Beside the objective `itc` the
negatives are those most similar by its vectors; alone they are any. Only the fusion runs again:
both sides' tokens are those of the clean pass.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.tasks.inputs import pair_keys
from mmflax.tasks.negatives import draw_negatives, interleave, itm_accuracy, itm_loss, take_rows
from mmflax.tasks.objectives.objective import CleanPass, Objective, draw_key
from mmflax.tasks.task import Batch, Outputs


class Matching(nn.Module):
    """`logits` [b 3 2] (apart, together) of the pair, of its image with another text and of its
    text with another image; `used` [b 3], false where there is no such pair."""

    negative_group: int

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        encoded, used = clean.encoded, clean.paired
        rows = used.shape[0]
        itc = clean.others.get("itc")
        embeddings = () if itc is None else (itc["image"], itc["text"], itc["scale"])
        keys = pair_keys(clean.batch)
        wrong = draw_negatives(draw_key(self, train), keys, used, self.negative_group, *embeddings)

        def images(x: Array) -> Array:
            return interleave(x, take_rows(x, wrong.image))

        def texts(x: Array) -> Array:
            return interleave(take_rows(x, wrong.text), x)

        fused = clean.fuse(
            images(encoded.image_tokens),
            texts(encoded.text_tokens),
            images(encoded.image_mask),
            texts(encoded.text_mask),
            train=train,
        )
        pooled = jnp.concatenate(
            [encoded.pooled[:, None], fused.pooled.reshape(rows, 2, -1)], axis=1
        )
        logits = nn.Dense(2, kernel_init=KERNEL_INIT, name="dense")(pooled)
        return {"logits": logits.astype(jnp.float32), "used": wrong.used}


def build(*, negative_group: int = 64) -> Objective:
    """Negatives come from the neighboring rows, at most `negative_group` of them: the largest
    number that divides the batch. Where it divides a device's rows, no tokens change device.

    Loss: the mean over the pair and its negatives. Metric: `itm_accuracy` over the same.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return itm_loss(outputs["logits"], outputs["used"])

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        return {"itm_accuracy": itm_accuracy(outputs["logits"], outputs["used"])}

    return Objective(Matching(negative_group), loss, metrics)
