"""Deep canonical correlation (Andrew et al. 2013): image and text vectors that vary together."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.losses.correlation import correlation_loss
from mmflax.tasks.objectives.heads import PairProjection
from mmflax.tasks.objectives.objective import CleanPass, Objective, mean_metric
from mmflax.tasks.task import Batch, Outputs


class Correlation(nn.Module):
    """Vectors `image`, `text` [b e] and `used` [b]."""

    dim: int

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        x, y = PairProjection(self.dim, name="pair")(clean)
        return {"image": x, "text": y, "used": clean.paired}


def build(*, dim: int = 16, regularize: float = 1e-3) -> Objective:
    """The loss is minus the sum of `dim` correlations, estimated on the batch: keep `dim` several
    times smaller than the batch, or any vectors correlate. `regularize` is the paper's r1 = r2.

    Metric: `cca_correlation`, the mean correlation, between 0 and 1.
    """

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return correlation_loss(
            outputs["image"], outputs["text"], outputs["used"], regularize=regularize
        )

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        correlation = -loss(outputs, batch) / jnp.asarray(dim, jnp.float32)
        return {"cca_correlation": mean_metric(correlation, outputs["used"])}

    return Objective(Correlation(dim), loss, metrics)
