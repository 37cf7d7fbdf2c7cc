"""Names of VisualBERT's checkpoints (transformers' VisualBertModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families.bert.names import (
    TABLES,
    bert_layer,
    count_labels,
    dense,
    encoder_fields,
    has,
    norm,
    word_head,
)
from mmflax.pretrained.families.lxmert.names import LAYER_FIELDS, words
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("visual_bert",)

PREFIX = "visual_bert."
REGIONS = (
    *dense("embeddings.visual_projection", "feature_projection"),
    Rule("embeddings.visual_token_type_embeddings.weight", "type_embedding/embedding"),
    Rule("embeddings.visual_position_embeddings.weight", "position_embedding/embedding"),
)
FUSION = (
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *bert_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *dense("pooler.dense", "text_pooler/dense"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords.

    What a classifier reads and how many classes it has is not in its tensors' names: the config's
    `architectures` say it.
    """
    if config.get("bypass_transformer"):
        raise MmflaxError(
            "the config has bypass_transformer true, which transformers itself cannot run; "
            "expected false."
        )
    text = encoder_fields(config)
    heads = [str(name) for name in config.get("architectures") or ()]
    choices = any(name.endswith("MultipleChoice") for name in heads)
    answers = any(name.endswith("QuestionAnswering") for name in heads)
    classes = 1 if choices else count_labels(config)
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
            **{key: text[key] for key in LAYER_FIELDS},
        ),
        word_head=words(config, names),
        matching=has(names, "cls.seq_relationship.weight"),
        labels=classes if "cls.weight" in names else 0,
        classifier="last_word" if answers else "pooled",
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a VisualBERT checkpoint, with or without the prefix `visual_bert.`."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    decoder = "cls.predictions.decoder"
    tied = words(config, names) == "tied"
    # Untied, the decoder's own bias is the one that is added, and the other lies idle.
    bias = "cls.predictions.bias" if tied else f"{decoder}.bias"
    return Table(
        rules=(
            *under(prefix, "text_encoder/", TABLES),
            *under(prefix, "image_encoder/", REGIONS),
            *under(prefix, "fusion/", FUSION),
            *word_head("cls.predictions.transform", f"{decoder}.weight", bias),
            *dense("cls.seq_relationship", "matching_head"),
            *dense("cls", "classifier"),
        ),
        tied=(
            (f"{decoder}.weight", f"{prefix}embeddings.word_embeddings.weight"),
            (f"{decoder}.bias", bias),
        )
        if tied
        else (),
        unused=(
            r"embeddings\.position_ids$",  # a constant, saved as a buffer by older releases
            *(() if tied else (r"^cls\.predictions\.bias$",)),
        ),
    )
