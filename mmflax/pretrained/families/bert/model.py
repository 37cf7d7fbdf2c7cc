"""BERT and RoBERTa as published: the encoder with a pooler, a word-prediction head, a classifier.

Devlin et al. 2019 (arXiv:1810.04805) and Liu et al. 2019 (arXiv:1907.11692).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_encoder
from mmflax.models.layers.blocks import lookup
from mmflax.pretrained.families.base import built, text_zeros, word_logits


class BertFamily(nn.Module):
    """`tokens`, `text_mask` and optional `token_types` to a dict.

    `last_hidden_state` [b t d]; with `pooler` `pooler_output` [b d]; with `word_head` `logits`
    [b t v] over the words' table or, with `tied` false, one of its own, through `word_activation`
    (default: the encoder's own); with `labels` above 0 `logits` as `classifier` says: "pooled"
    [b labels] from the pooled vector (BERT), "dense" [b labels] from the first token by two layers
    of the head's own (RoBERTa), "tokens" [b t labels] from every token. With `causal` a token sees
    itself and those before it.
    """

    text_encoder: BERT
    pooler: bool = True
    word_head: bool = False
    labels: int = 0
    classifier: str = "pooled"
    word_activation: str | None = None
    tied: bool = True
    causal: bool = False
    classifier_dropout_rate: float | None = None

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return text_zeros(rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder = self.text_encoder
        dtypes = encoder.dtypes
        x: Any = encoder(
            batch["tokens"],
            batch.get("text_mask"),
            batch.get("token_types"),
            causal=self.causal,
            train=train,
        )
        out = {"last_hidden_state": x}
        if self.pooler:
            out["pooler_output"] = encoder.pool(x)
        if self.word_head:
            table = "tied" if self.tied else "own"
            out["logits"] = word_logits(encoder, x, table, activation=self.word_activation)
        if self.labels:
            rate = self.classifier_dropout_rate
            rate = encoder.layer.dropout_rate if rate is None else rate
            drop = nn.Dropout(rate, deterministic=not train)
            inputs = {"pooled": out.get("pooler_output", x[:, 0]), "dense": x[:, 0], "tokens": x}
            y = lookup("classifier", self.classifier, inputs)
            if self.classifier == "dense":
                y = jnp.tanh(nn.Dense(encoder.width, name="classifier_dense", **dtypes)(drop(y)))
            out["logits"] = nn.Dense(self.labels, name="classifier", **dtypes)(drop(y))
        return out


def build(**fields: Any) -> BertFamily:
    """A `BertFamily`; `text_encoder` are the keywords of the encoder `bert`."""
    return BertFamily(**built(fields, text_encoder=build_encoder))
