"""Captioning: the target text word by word, from the image alone.

Cross-entropy of each next word (Vinyals et al. 2015) by a decoder that attends to the image
encoder's tokens; the text that the model reads is not shown to it, since in pretraining it often is
the target.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array

from mmflax.losses.generation import next_word_loss, shift
from mmflax.models.decoder.decoder import build as build_decoder
from mmflax.models.layers.attention import zero_masked
from mmflax.tasks.objectives.objective import CleanPass, Objective
from mmflax.tasks.task import Batch, Outputs


class Captioning(nn.Module):
    """`logits` [b s-1 v] of each target token from the one before it; `mask` [b s-1]."""

    vocab_size: int
    decoder: Mapping[str, Any]

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        target, target_mask = clean.require("captioning", "target"), clean.batch["target_mask"]
        given, _, asked = shift(target, target_mask)
        image, image_mask = clean.encoded.image_tokens, clean.encoded.image_mask
        decoder = build_decoder(
            vocab_size=self.vocab_size,
            max_length=target.shape[1],
            name="decoder",
            **dict(self.decoder),
        )
        logits = decoder(
            given,
            zero_masked(image, image_mask),
            tokens_mask=target_mask[:, :-1],
            memory_mask=image_mask,
            train=train,
        )
        # Without an image there is nothing to describe.
        present = image_mask.any(axis=1)[:, None]
        return {"logits": logits, "mask": asked & present}


def build(
    *,
    backbone: nn.Module,
    vocab_size: int,
    label_smoothing: float = 0.0,
    decoder: Mapping[str, Any] | None = None,
) -> Objective:
    """`decoder` holds fields of `models.decoder.Decoder`; by default it is as wide as the fusion,
    with two layers."""
    fusion: Any = backbone.fusion
    sizes = dict(width=fusion.width, depth=2, num_heads=fusion.num_heads)
    module = Captioning(vocab_size, sizes | dict(decoder or {}))

    def loss(outputs: Outputs, batch: Batch) -> Array:
        asked = batch["target"][:, 1:]
        return next_word_loss(
            outputs["logits"], asked, outputs["mask"], label_smoothing=label_smoothing
        )

    return Objective(module, loss)
