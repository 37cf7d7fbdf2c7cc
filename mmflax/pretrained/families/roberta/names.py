"""Names of RoBERTa's checkpoints (transformers' RobertaModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.bert.names import HEADS, classifier_fields, head_fields
from mmflax.pretrained.families.config_keys import SIZE, Key, Keys
from mmflax.pretrained.rules import LINEAR, Rule, Table, under

MODEL_TYPES = ("roberta", "xlm_roberta")
ROBERTA = Keys(
    used=configs.ROBERTA_USED | HEADS,
    fixed=configs.BERT_FIXED,
    harmless=configs.BERT_HARMLESS,
)
# The default of XLM-RoBERTa's vocabulary is BERT's size, which no published file relies on.
KEYS = {
    "roberta": ROBERTA,
    "xlm_roberta": ROBERTA._replace(used={**ROBERTA.used, "vocab_size": Key(SIZE, 30522)}),
}


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
        word_head=configs.has(names, "lm_head.dense.weight"),
        word_activation="gelu",
        **head_fields(config, names),
        **head,
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a RoBERTa checkpoint, with or without the prefix `roberta.`."""
    roberta = configs.prefix(names, "roberta.")
    decoder = configs.decoder_names(
        config, names, "lm_head.decoder", "lm_head.bias", roberta + configs.WORD_TABLE
    )
    return Table(
        rules=(
            *under(roberta, "text_encoder/", rows.BERT),
            *rows.dense("lm_head.dense", "word_head/dense"),
            *rows.norm("lm_head.layer_norm", "word_head/norm"),
            Rule("lm_head.decoder.weight", "word_head/kernel", LINEAR),
            Rule(decoder.bias, "word_head/bias"),
            *rows.dense("classifier.dense", "classifier_dense"),
            *rows.dense(
                "classifier.out_proj" if own_classifier(names) else "classifier", "classifier"
            ),
        ),
        tied=decoder.tied,
        unused=(rows.POSITION_IDS, *decoder.unused),
    )
