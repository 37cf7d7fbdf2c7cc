"""Adversarial alignment: vectors that do not tell whether they come from an image or a text.

A discriminator guesses the modality; its gradient reaches projections and encoders turned round
(Ganin et al. 2016, eq. 16-17), so that they learn to hide what it learns to see.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.losses.adversarial import modality_loss, reverse_gradient
from mmflax.models.layers.blocks import ACTIVATIONS, KERNEL_INIT
from mmflax.tasks.objectives.heads import PairProjection
from mmflax.tasks.objectives.objective import CleanPass, Objective, mean_metric
from mmflax.tasks.task import Batch, Outputs


class Discriminator(nn.Module):
    """The logit [b] of "this is an image's vector": dense, GELU, dense."""

    @nn.compact
    def __call__(self, x: Float[Array, "b e"]) -> Float[Array, "b"]:
        hidden = nn.Dense(x.shape[-1], kernel_init=KERNEL_INIT, name="hidden")(x)
        score = nn.Dense(1, kernel_init=KERNEL_INIT, name="score")
        return score(ACTIVATIONS["gelu"](hidden))[:, 0]


class Adversary(nn.Module):
    """The discriminator's logits [b] for `image` and `text`, and `used` [b]."""

    dim: int
    reverse: float

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        x, y = PairProjection(self.dim, name="pair")(clean)
        guess = Discriminator(name="discriminator")
        image, text = (guess(reverse_gradient(v, self.reverse)) for v in (x, y))
        return {"image": image, "text": text, "used": clean.paired}


def build(*, dim: int = 256, reverse: float = 1.0) -> Objective:
    """`reverse` is the paper's lambda: how strongly the encoders work against the discriminator.

    Metric: `adversarial_accuracy` of the discriminator; 0.5 = it sees nothing.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return modality_loss(outputs["image"], outputs["text"], outputs["used"])

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        right = [outputs["image"] > 0, outputs["text"] < 0]
        share = (right[0].astype(jnp.float32) + right[1].astype(jnp.float32)) / 2
        return {"adversarial_accuracy": mean_metric(share, outputs["used"])}

    return Objective(Adversary(dim, reverse), loss, metrics)
