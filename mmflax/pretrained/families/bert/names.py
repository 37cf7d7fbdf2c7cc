"""Names of BERT's checkpoints (transformers' BertModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import Keys
from mmflax.pretrained.rules import Table, under

MODEL_TYPES = ("bert",)
KEYS = {
    "bert": Keys(
        used=configs.BERT_USED,
        fixed=configs.BERT_FIXED,
        harmless=(*configs.BERT_HARMLESS, "classifier_dropout"),
    )
}


def classifier_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the classifier that a file has: over the pooled vector, or over every token."""
    pooled = configs.has(names, "pooler.dense.weight") and not configs.architecture(
        config, "TokenClassification"
    )
    labels = configs.classifier_labels(config, names)
    return dict(labels=labels, classifier="pooled" if pooled else "tokens") if labels else {}


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="bert",
        text_encoder=configs.bert_fields(config),
        pooler=configs.has(names, "pooler.dense.weight"),
        word_head=configs.has(names, "cls.predictions.bias"),
        **classifier_fields(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BERT checkpoint, with or without the prefix `bert.`."""
    bert, head = configs.prefix(names, "bert."), "cls.predictions"
    return Table(
        rules=(
            *under(bert, "text_encoder/", rows.BERT),
            *rows.word_head(f"{head}.transform", f"{head}.decoder.weight", f"{head}.bias"),
            *rows.dense("classifier", "classifier"),
        ),
        tied=(
            (f"{head}.decoder.weight", bert + configs.WORD_TABLE),
            (f"{head}.decoder.bias", f"{head}.bias"),
        ),
        unused=(rows.POSITION_IDS, r"^cls\.seq_relationship\."),
    )
