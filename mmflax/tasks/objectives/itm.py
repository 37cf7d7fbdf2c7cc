"""Image-text matching: after fusion, do the image and the text belong together?

ALBEF (Li et al. 2021, sec. 3.2): each pair, its image with a wrong text, and its text with a wrong
image. Beside the objective `itc` the wrong ones are those most alike by its vectors; alone they are
any. Only the fusion runs again: both sides' tokens are those of the clean pass.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.losses.masked import mean_over
from mmflax.losses.matching import hard_negatives, matching_loss
from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.tasks.objectives.objective import Objective, Reading, draw_key
from mmflax.tasks.task import Batch, Outputs


class Matching(nn.Module):
    """`logits` [b 3 2] (apart, together) of the pair, of its image with another text and of its
    text with another image; `used` [b 3], false where there is no such pair."""

    negative_group: int

    @nn.compact
    def __call__(self, reading: Reading, *, train: bool) -> Outputs:
        clean, used = reading.encoded, reading.paired
        rows = used.shape[0]
        group = max(size for size in range(1, self.negative_group + 1) if rows % size == 0)

        def grouped(x: Array) -> Array:
            return x.reshape(-1, group, *x.shape[1:])

        keys = reading.batch.get("image_key")
        keys = jnp.arange(rows, dtype=jnp.int32) if keys is None else keys
        alike = jnp.zeros((rows // group, group, group), jnp.float32)
        if "itc" in reading.others:
            itc = reading.others["itc"]
            alike = jnp.einsum("gie,gje->gij", grouped(itc["image"]), grouped(itc["text"]))
            alike = jax.lax.stop_gradient(alike * itc["scale"])
        text_key, image_key = jax.random.split(draw_key(self, train))
        places = grouped(keys), grouped(used)
        other_text, has_text = hard_negatives(text_key, alike, *places)
        other_image, has_image = hard_negatives(image_key, alike.swapaxes(1, 2), *places)

        def other(x: Array, index: Array) -> Array:
            parts = grouped(x)
            at = index.reshape(*index.shape, *(1,) * (parts.ndim - 2))
            return jnp.take_along_axis(parts, at, axis=1).reshape(x.shape)

        def beside(x: Array, y: Array) -> Array:
            # Row by row, so that each device's rows stay its own.
            return jnp.stack([x, y], axis=1).reshape(2 * rows, *x.shape[1:])

        wrong = reading.fuse(
            beside(clean.image_tokens, other(clean.image_tokens, other_image)),
            beside(other(clean.text_tokens, other_text), clean.text_tokens),
            beside(clean.image_mask, other(clean.image_mask, other_image)),
            beside(other(clean.text_mask, other_text), clean.text_mask),
            train=train,
        )
        pooled = jnp.concatenate([clean.pooled[:, None], wrong.pooled.reshape(rows, 2, -1)], axis=1)
        logits = nn.Dense(2, kernel_init=KERNEL_INIT, name="dense")(pooled)
        exist = jnp.stack([used, has_text.reshape(-1), has_image.reshape(-1)], axis=1)
        return {"logits": logits.astype(jnp.float32), "used": exist}


def build(*, negative_group: int = 64) -> Objective:
    """Wrong partners come from the neighbouring rows, at most `negative_group` of them: the largest
    number that divides the batch. Where it divides a device's rows, no tokens change device.

    Loss: the mean over the pair and its negatives. Metric: `itm_accuracy` over the same.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        logits, used = outputs["logits"], outputs["used"]
        together = jnp.broadcast_to(jnp.arange(3)[None] == 0, used.shape)
        each = matching_loss(logits.reshape(-1, 2), together.reshape(-1))
        return mean_over(each.reshape(used.shape), used)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        used = outputs["used"]
        says = outputs["logits"][..., 1] > outputs["logits"][..., 0]
        right = used & (says == (jnp.arange(3)[None] == 0))
        return {"itm_accuracy": (_count(right), _count(used))}

    return Objective(Matching(negative_group), loss, metrics)


def _count(x: Array) -> Array:
    return x.sum(axis=1, dtype=jnp.float32)
