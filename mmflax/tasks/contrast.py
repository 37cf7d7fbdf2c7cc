"""Contrast of images with texts, as a retrieval task and the objective `itc` train it: the learned
temperature, the losses by name, and recall in the batch."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.losses import contrastive
from mmflax.metrics.accuracy import Metric
from mmflax.tasks.inputs import pair_keys
from mmflax.tasks.task import Batch

MAX_SCALE = 100.0  # CLIP, sec. 2.5: a larger one makes training unstable
# kind: (temperature, bias) at the start; CLIP sec. 2.5, SimCLR table 5, SigLIP sec. 3.2.
INIT: dict[str, tuple[float, float | None]] = {
    "clip": (0.07, None),
    "nt_xent": (0.1, None),
    "sigmoid": (0.1, -10.0),
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def at_most(x: Float[Array, ""], limit: float) -> Float[Array, ""]:
    """`min(x, limit)` that comes back: beyond the limit only what leads further has no gradient.

    CLIP's own checkpoints lie at the limit, where `min` alone would never let them go.
    """
    return jnp.minimum(x, limit)


def _at_most_forward(x: Array, limit: float) -> tuple[Array, Array]:
    return at_most(x, limit), x


def _at_most_backward(limit: float, x: Array, slope: Array) -> tuple[Array]:
    return (jnp.where((x >= limit) & (slope < 0), jnp.zeros_like(slope), slope),)


at_most.defvjp(_at_most_forward, _at_most_backward)


class Temperature(nn.Module):
    """`(scale, bias)` of the logits `scale * cosine + bias`; `scale` is 1 / temperature.

    Learned as log(scale), as in CLIP, and at most `max_scale` (None: as it comes, as in SigLIP).
    `bias_init=None` fixes the bias at 0.
    """

    temperature_init: float
    bias_init: float | None = None
    max_scale: float | None = MAX_SCALE

    @nn.compact
    def __call__(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        def number(name: str, value: float) -> Array:
            return self.param(name, nn.initializers.constant(value), (), jnp.float32)

        log_scale = number("scale", -math.log(self.temperature_init))
        if self.max_scale is not None:
            log_scale = at_most(log_scale, math.log(self.max_scale))
        scale = jnp.exp(log_scale)
        if self.bias_init is None:
            return scale, jnp.zeros((), jnp.float32)
        return scale, number("bias", self.bias_init)


def contrastive_loss(
    kind: str,
    image: Float[Array, "b e"],
    text: Float[Array, "b e"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    used: Bool[Array, "b"],
    batch: Batch,
) -> Float[Array, "b"]:
    """The loss of that kind over the rows in use; rows with the same image or the same text
    are no negatives of each other."""
    given: Any = dict(keys=pair_keys(batch), mask=used)
    if kind == "sigmoid":
        return contrastive.sigmoid(image, text, scale, bias, **given)
    loss = contrastive.clip if kind == "clip" else contrastive.nt_xent
    return loss(image, text, scale, **given)


def recall_metrics(
    image: Float[Array, "b e"], text: Float[Array, "b e"], used: Bool[Array, "b"], batch: Batch
) -> dict[str, Metric]:
    """`in_batch_recall/i2t` and `/t2i`: recall at 1, which the batch's size decides."""
    hits = contrastive.recall_at_1(image, text, keys=pair_keys(batch), mask=used)
    names = ("in_batch_recall/i2t", "in_batch_recall/t2i")
    return {n: (hit, used.astype(jnp.float32)) for n, hit in zip(names, hits, strict=True)}
