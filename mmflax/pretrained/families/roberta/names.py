"""Names of RoBERTa's checkpoints (transformers' RobertaModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.bert.names import classifier_fields
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("roberta", "xlm_roberta")


def own_classifier(names: Collection[str]) -> bool:
    """Whether the classifier has two layers of its own, in place of the pooler."""
    return "classifier.dense.weight" in names


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    if own_classifier(names):
        head: dict[str, Any] = dict(labels=configs.count_labels(config), classifier="dense")
    else:
        head = classifier_fields(config, names)
    return dict(
        name="bert",
        text_encoder=configs.roberta_fields(config),
        pooler=configs.has(names, "pooler.dense.weight"),
        word_head=configs.has(names, "lm_head.bias"),
        word_activation="gelu",
        **head,
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a RoBERTa checkpoint, with or without the prefix `roberta.`."""
    roberta = configs.prefix(names, "roberta.")
    return Table(
        rules=(
            *under(roberta, "text_encoder/", rows.BERT),
            *rows.dense("lm_head.dense", "word_head/dense"),
            *rows.norm("lm_head.layer_norm", "word_head/norm"),
            Rule("lm_head.bias", "word_head/bias"),
            *rows.dense("classifier.dense", "classifier_dense"),
            *rows.dense(
                "classifier.out_proj" if own_classifier(names) else "classifier", "classifier"
            ),
        ),
        tied=(
            ("lm_head.decoder.weight", roberta + configs.WORD_TABLE),
            ("lm_head.decoder.bias", "lm_head.bias"),
        ),
        unused=(rows.POSITION_IDS,),
    )
