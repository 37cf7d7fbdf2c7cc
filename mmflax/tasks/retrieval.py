"""Image-text retrieval: two encoders compared by embedding, and a fusion that re-ranks.

The dual encoder is CLIP's (Radford et al. 2021, fig. 3) or, with the sigmoid loss, SigLIP's (Zhai
et al. 2023). `fused=True` adds what ALBEF adds (Li et al. 2021, sec. 3.2): the fusion judges
whether an image and a text belong together (ITM), trained on hard negatives from the batch, so that
a search can re-rank the nearest by embedding.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError, option
from mmflax.losses import word_region_loss
from mmflax.models.heads import WordGrounding
from mmflax.models.layers.blocks import lookup
from mmflax.tasks.contrast import (
    INIT,
    MAX_SCALE,
    Temperature,
    contrastive_loss,
    recall_metrics,
)
from mmflax.tasks.negatives import itm_accuracy, itm_loss
from mmflax.tasks.retrieval_model import RetrievalModel, Rows
from mmflax.tasks.task import Batch, Outputs, Search, Task


def build(
    *,
    backbone: nn.Module,
    embed_dim: int = 256,
    loss: str = "clip",
    fused: bool = False,
    temperature_init: float | None = None,
    bias_init: float | None = None,
    max_scale: float | None = MAX_SCALE,
    image_pool: str | None = None,
    text_pool: str | None = None,
    image_projection: str = "linear",
    text_projection: str = "linear",
    matching: float = 1.0,
    negative_group: int = 0,
    caption_words: float = 0.0,
) -> Task:
    """The task; the text of an example is what should find its image.

    Rows with the same `image_key` or the same words are no negatives of each other.

    Args:
      loss: "clip" (softmax over the batch), "nt_xent" (SimCLR) or "sigmoid" (SigLIP).
      fused: also train the fusion to tell pairs that belong together; without it no parameter of
        the fusion exists.
      temperature_init: by default the papers': 0.07, 0.1 and 0.1.
      bias_init: of "sigmoid"; by default -10.
      max_scale: the largest 1 / temperature, CLIP's 100; None has no limit, as in SigLIP.
      image_pool: "cls", "gap" or "map" (attention by a learned probe); by default what the encoder
        says, else cls where there is one.
      text_pool: "cls", "gap" or "encoder" (the token that the encoder's own `pool` takes, in CLIP
        the one that ends the text); by default "encoder" where it has one, else cls.
      image_projection: "linear", "affine" (with a bias) or "none", for an encoder that is
        `embed_dim` wide.
      text_projection: likewise.
      matching: weight of the fusion's loss, which is the mean over a pair and its two negatives.
      negative_group: negatives are drawn among at most so many neighboring rows, the largest number
        that divides the batch; 0 = the whole batch. On a mesh a divisor of a device's rows spares
        moving tokens between devices.
      caption_words: weight of `word_region_loss` on the caption (without captions, on the text).

    Metrics: `in_batch_recall/i2t` and `/t2i` (recall at 1 in the batch, which its size decides),
    `itm_accuracy` over pairs and negatives, and the losses `loss/contrastive`, `loss/itm` and
    `loss/words` where there are several. Rows without an image or a text count nowhere.
    """
    if backbone.modality_dropout:
        raise MmflaxError(
            f"model.modality_dropout is {backbone.modality_dropout}, but retrieval compares an "
            "image with a text and learns nothing from one alone; give "
            f"{option('model.modality_dropout', 0.0)}."
        )
    temperature, bias = lookup("loss", loss, INIT)
    temperature = temperature if temperature_init is None else temperature_init
    if temperature <= 0:
        raise MmflaxError(f"temperature_init is {temperature}; it must be above 0, such as 0.07.")
    if loss != "sigmoid" and bias_init is not None:
        raise MmflaxError(
            f"task.bias_init is set, but loss {loss!r} has no bias; give "
            f"{option('task.bias_init', None)}."
        )
    pool = image_pool or _image_pool(backbone.image_encoder)
    if pool == "map" and "layer" not in vars(backbone.image_encoder):
        raise MmflaxError(
            f"task.image_pool is 'map', a layer like the image encoder's own, and "
            f"{type(backbone.image_encoder).__name__} has none; give "
            f"{option('task.image_pool', 'gap')}."
        )
    model = RetrievalModel(
        backbone,
        embed_dim,
        Temperature(temperature, bias if bias_init is None else bias_init, max_scale),
        pool,
        text_pool or _text_pool(backbone.text_encoder),
        fused,
        negative_group,
        WordGrounding() if caption_words else None,
        image_projection,
        text_projection,
    )

    def parts(outputs: Outputs, batch: Batch) -> dict[str, Float[Array, "b"]]:
        used = outputs["used"]
        x, y = outputs["image_embedding"], outputs["text_embedding"]
        scale, bias = outputs["logit_scale"], outputs["logit_bias"]
        losses = {"contrastive": contrastive_loss(loss, x, y, scale, bias, used, batch)}
        if fused:
            losses["itm"] = itm_loss(outputs["match"], outputs["match_used"])
        if caption_words:
            words = "caption" if "caption" in batch else "tokens"
            word_mask = batch["caption_mask" if "caption" in batch else "text_mask"]
            word_mask = word_mask & used[:, None]  # not in place: the batch's own array
            losses["words"] = word_region_loss(outputs["words"], batch[words], word_mask)
        return losses

    weights = {"contrastive": 1.0, "itm": matching, "words": caption_words}

    def total(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        losses = parts(outputs, batch)
        return sum((weights[name] * value for name, value in losses.items()), jnp.zeros(()))

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        used = outputs["used"].astype(jnp.float32)
        embeddings = outputs["image_embedding"], outputs["text_embedding"]
        values = recall_metrics(*embeddings, outputs["used"], batch)
        if fused:
            values["itm_accuracy"] = itm_accuracy(outputs["match"], outputs["match_used"])
        losses = parts(outputs, batch)
        if len(losses) > 1:
            values |= {f"loss/{name}": (value, used) for name, value in losses.items()}
        return values

    return Task(model, total, metrics, search=_search(model))


def _search(model: RetrievalModel) -> Search:
    """What a retriever calls; without fusion nothing but embeddings need be kept."""

    def kept(rows: Rows) -> Rows:
        return rows if model.fused else {"embedding": rows["embedding"]}

    def apply(params: Any, *args: Any, method: str) -> Any:
        return model.apply({"params": params}, *args, train=False, method=method)

    def encode_image(params: Any, batch: Batch) -> Rows:
        return kept(apply(params, batch, method="encode_image"))

    def encode_text(params: Any, batch: Batch) -> Rows:
        return kept(apply(params, batch, method="encode_text"))

    def match(params: Any, image: Rows, text: Rows) -> Float[Array, "b"]:
        logits = apply(params, image, text, method="match")
        return logits[:, 1] - logits[:, 0]

    return Search(encode_image, encode_text, match if model.fused else None)


def _image_pool(encoder: nn.Module) -> str:
    if encoder.pool != "none":
        return encoder.pool
    return "cls" if encoder.cls_token else "gap"


def _text_pool(encoder: nn.Module) -> str:
    return "cls" if encoder.pooling == "none" else "encoder"
