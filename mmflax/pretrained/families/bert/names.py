"""Names of BERT's checkpoints (transformers' BertModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import FLAG, RATE, Key, Keys
from mmflax.pretrained.rules import Table, under

MODEL_TYPES = ("bert",)
# What `head_fields` reads, also of RoBERTa.
HEADS = dict(
    is_decoder=Key(FLAG, False),
    tie_word_embeddings=Key(FLAG, True),
    classifier_dropout=Key(RATE, None),
)
KEYS = {
    "bert": Keys(
        used=configs.BERT_USED | HEADS,
        fixed=configs.BERT_FIXED,
        harmless=configs.BERT_HARMLESS,
    )
}


def classifier_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the classifier that a file has: over the pooled vector, or over every token."""
    pooled = configs.has(names, "pooler.dense.weight") and not configs.architecture(
        config, "TokenClassification"
    )
    labels = configs.classifier_labels(config, names)
    return dict(labels=labels, classifier="pooled" if pooled else "tokens") if labels else {}


def head_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of `BertFamily` that BERT and RoBERTa read alike."""
    return dict(
        pooler=configs.has(names, "pooler.dense.weight"),
        causal=config["is_decoder"],
        tied=config["tie_word_embeddings"],
        classifier_dropout_rate=config["classifier_dropout"],
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="bert",
        text_encoder=configs.bert_fields(config),
        word_head=configs.has(names, "cls.predictions.transform.dense.weight"),
        **head_fields(config, names),
        **classifier_fields(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BERT checkpoint, with or without the prefix `bert.`."""
    bert, head = configs.prefix(names, "bert."), "cls.predictions"
    decoder = configs.decoder_names(
        config, names, f"{head}.decoder", f"{head}.bias", bert + configs.WORD_TABLE
    )
    return Table(
        rules=(
            *under(bert, "text_encoder/", rows.BERT),
            *rows.word_head(f"{head}.transform", f"{head}.decoder.weight", decoder.bias),
            *rows.dense("classifier", "classifier"),
        ),
        tied=decoder.tied,
        unused=(rows.POSITION_IDS, r"^cls\.seq_relationship\.", *decoder.unused),
    )
