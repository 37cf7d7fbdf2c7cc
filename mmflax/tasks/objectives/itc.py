"""Image-text contrast: an image's vector is nearest to its own text's, before any fusion.

CLIP (Radford et al. 2021), SimCLR's NT-Xent (Chen et al. 2020) or SigLIP (Zhai et al. 2023); see
`losses/contrastive.py`. On a mesh the comparison goes round a ring.
"""

import flax.linen as nn
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.losses import contrastive
from mmflax.models.layers.blocks import choose
from mmflax.numerics import unit
from mmflax.tasks.objectives.heads import PairProjection
from mmflax.tasks.objectives.objective import Objective, Reading, mean_metric
from mmflax.tasks.retrieval_model import Temperature
from mmflax.tasks.task import Batch, Outputs

# kind: (temperature, bias) at the start; CLIP sec. 2.5, SimCLR table 5, SigLIP sec. 3.2.
INIT: dict[str, tuple[float, float | None]] = {
    "clip": (0.07, None),
    "nt_xent": (0.1, None),
    "sigmoid": (0.1, -10.0),
}


class Contrast(nn.Module):
    """Unit vectors `image`, `text` [b e], the logits' `scale` and `bias`, and `used` [b]."""

    embed_dim: int
    temperature: float
    bias: float | None

    @nn.compact
    def __call__(self, reading: Reading, *, train: bool) -> Outputs:
        x, y = PairProjection(self.embed_dim, use_bias=False, name="pair")(reading)
        scale, bias = Temperature(self.temperature, self.bias, name="temperature")()
        used = reading.paired
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
        raise MmflaxError(f"task.objectives.itc.bias is set, but kind {kind!r} has no bias.")
    module = Contrast(
        embed_dim,
        first_temperature if temperature is None else temperature,
        first_bias if bias is None else bias,
    )

    def loss(outputs: Outputs, batch: Batch) -> Array:
        pair = (outputs["image"], outputs["text"], outputs["scale"])
        given = dict(keys=batch.get("image_key"), mask=outputs["used"])
        if kind == "sigmoid":
            return contrastive.sigmoid(*pair, outputs["bias"], **given)
        return (contrastive.clip if kind == "clip" else contrastive.nt_xent)(*pair, **given)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        used = outputs["used"]
        found = contrastive.recall_at_1(
            outputs["image"], outputs["text"], keys=batch.get("image_key"), mask=used
        )
        names = ("in_batch_recall/i2t", "in_batch_recall/t2i")
        return {n: mean_metric(hits, used) for n, hits in zip(names, found, strict=True)}

    return Objective(module, loss, metrics)
