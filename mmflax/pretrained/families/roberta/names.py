"""Names of RoBERTa's checkpoints (transformers' RobertaModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import (
    ENCODER,
    classifier,
    count_labels,
    dense,
    encoder_fields,
    has,
    norm,
)
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("roberta", "xlm_roberta")

PREFIX = "roberta."


def text_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder: the row after the padding's is the first token's position."""
    padding = config.get("pad_token_id", 1)
    return encoder_fields(config, position_offset=padding + 1, **more)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    own = "classifier.dense.weight" in names
    head = dict(labels=count_labels(config), classifier="dense") if own else {}
    return dict(
        name="bert",
        text_encoder=text_fields(config),
        pooler=has(names, "pooler.dense.weight"),
        word_head=has(names, "lm_head.bias"),
        word_activation="gelu",
        **head or classifier(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a RoBERTa checkpoint, with or without the prefix `roberta.`."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    own = "classifier.dense.weight" in names
    return Table(
        rules=(
            *under(prefix, "text_encoder/", ENCODER),
            *dense("lm_head.dense", "word_head/dense"),
            *norm("lm_head.layer_norm", "word_head/norm"),
            Rule("lm_head.bias", "word_head/bias"),
            *dense("classifier.dense", "classifier_dense"),
            *dense("classifier.out_proj" if own else "classifier", "classifier"),
        ),
        tied=(
            ("lm_head.decoder.weight", f"{prefix}embeddings.word_embeddings.weight"),
            ("lm_head.decoder.bias", "lm_head.bias"),
        ),
        # Counts from 0; kept as a buffer by older releases.
        unused=(r"embeddings\.position_ids$",),
    )
