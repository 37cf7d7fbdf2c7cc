"""Names of VisualBERT's checkpoints (transformers' VisualBertModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    FLAG,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("visual_bert",)

KEYS = {
    "visual_bert": Keys(
        used=configs.BERT_USED
        | dict(visual_embedding_dim=Key(SIZE, 512), tie_word_embeddings=Key(FLAG, True)),
        # transformers itself cannot run the other value.
        fixed=dict(bypass_transformer=(False,)),
        harmless=("position_embedding_type", "special_visual_initialize"),
    )
}

REGIONS = (
    *rows.dense("embeddings.visual_projection", "feature_projection"),
    Rule("embeddings.visual_token_type_embeddings.weight", "type_embedding/embedding"),
    Rule("embeddings.visual_position_embeddings.weight", "position_embedding/embedding"),
)
FUSION = (
    *rows.norm("embeddings.LayerNorm", "embedding_norm"),
    *rows.bert_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *rows.dense("pooler.dense", "text_pooler/dense"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords.

    What a classifier reads and how many classes it has is not in its tensors' names: the config's
    `architectures` say it.
    """
    if "cls.weight" in names and not config["architectures"]:
        raise MmflaxError(
            "the config has no architectures, which say what the classifier of a VisualBERT reads; "
            'add the class that saved it, such as ["VisualBertForQuestionAnswering"].'
        )
    text = configs.bert_fields(config)
    classes = 1 if configs.architecture(config, "MultipleChoice") else configs.count_labels(config)
    answers = configs.architecture(config, "QuestionAnswering")
    return dict(
        name="visual_bert",
        text_encoder=text | dict(depth=0, norm_embeddings=False),
        image_encoder=dict(
            form="visual_bert",
            width=config["hidden_size"],
            feature_dim=config["visual_embedding_dim"],
            num_types=config["type_vocab_size"],
            num_positions=config["max_position_embeddings"],
        ),
        fusion=dict(
            form="visual_bert",
            depth=config["num_hidden_layers"],
            **configs.layer_fields(text),
        ),
        word_head=configs.word_table(config, names),
        matching=configs.has(names, "cls.seq_relationship.weight"),
        labels=classes if "cls.weight" in names else 0,
        classifier="last_word" if answers else "pooled",
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a VisualBERT checkpoint, with or without the prefix `visual_bert.`."""
    bert = configs.prefix(names, "visual_bert.")
    head = "cls.predictions"
    decoder = configs.decoder_names(
        config, names, f"{head}.decoder", f"{head}.bias", bert + configs.WORD_TABLE
    )
    return Table(
        rules=(
            *under(bert, "text_encoder/", rows.BERT_TABLES),
            *under(bert, "image_encoder/", REGIONS),
            *under(bert, "fusion/", FUSION),
            *rows.word_head(f"{head}.transform", f"{head}.decoder.weight", decoder.bias),
            *rows.dense("cls.seq_relationship", "matching_head"),
            *rows.dense("cls", "classifier"),
        ),
        tied=decoder.tied,
        unused=(rows.POSITION_IDS, *decoder.unused),
    )
