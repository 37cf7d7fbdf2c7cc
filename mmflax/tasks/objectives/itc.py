"""Image-text contrast: an image's vector is nearest to its own text's, before any fusion.

CLIP (Radford et al. 2021), SimCLR's NT-Xent (Chen et al. 2020) or SigLIP (Zhai et al. 2023); see
`losses/contrastive.py`. On a mesh the comparison goes round a ring.
"""

import flax.linen as nn
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import lookup
from mmflax.numerics import unit
from mmflax.tasks.contrast import INIT, Temperature, contrastive_loss, recall_metrics
from mmflax.tasks.objectives.heads import PairProjection
from mmflax.tasks.objectives.objective import CleanPass, Objective
from mmflax.tasks.task import Batch, Outputs


class Contrast(nn.Module):
    """Unit vectors `image`, `text` [b e], the logits' `scale` and `bias`, and `used` [b]."""

    embed_dim: int
    temperature: float
    bias: float | None

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        x, y = PairProjection(self.embed_dim, use_bias=False, name="pair")(clean)
        scale, bias = Temperature(self.temperature, self.bias, name="temperature")()
        used = clean.paired
        return {"image": unit(x), "text": unit(y), "scale": scale, "bias": bias, "used": used}


def build(
    *,
    kind: str = "clip",
    embed_dim: int = 256,
    temperature: float | None = None,
    bias: float | None = None,
) -> Objective:
    """`kind` is "clip", "nt_xent" or "sigmoid"; `temperature` and `bias` (of "sigmoid" alone) are
    where the learned ones start. Rows with one `image_key` are no negatives of each other.

    Metrics: `in_batch_recall/i2t` and `/t2i`, recall at 1, which the batch's size decides.
    """
    first_temperature, first_bias = lookup("task.objectives.itc.kind", kind, INIT)
    if bias is not None and kind != "sigmoid":
        raise MmflaxError(
            f"task.objectives.itc.bias is set, but kind {kind!r} has no bias; give "
            "--config.task.objectives.itc.bias=None."
        )
    module = Contrast(
        embed_dim,
        first_temperature if temperature is None else temperature,
        first_bias if bias is None else bias,
    )

    def loss(outputs: Outputs, batch: Batch) -> Array:
        x, y, used = outputs["image"], outputs["text"], outputs["used"]
        return contrastive_loss(kind, x, y, outputs["scale"], outputs["bias"], used, batch)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        return recall_metrics(outputs["image"], outputs["text"], outputs["used"], batch)

    return Objective(module, loss, metrics)
