"""Names of ViLT's checkpoints (transformers' ViltModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    FLAG,
    RATE,
    SIDE,
    SIZE,
    Key,
    Keys,
    Kind,
)
from mmflax.pretrained.rules import FIRST, Rule, Table, under

MODEL_TYPES = ("vilt",)

# -1 of a file whose classifier reads no image vectors of their own.
IMAGES = Kind("-1, 1 or 2", lambda value: type(value) is int and value in (-1, 1, 2))
KEYS = {
    "vilt": Keys(
        used=configs.BERT_USED
        | dict(
            max_position_embeddings=Key(SIZE, 40),
            modality_type_vocab_size=Key(SIZE, 2),
            hidden_dropout_prob=Key(RATE, 0.0),
            attention_probs_dropout_prob=Key(RATE, 0.0),
            image_size=Key(SIDE, 384),
            patch_size=Key(SIDE, 32),
            qkv_bias=Key(FLAG, True),
            num_images=Key(IMAGES, -1),
        ),
        # Above 0 the original draws that many patches at random, in evaluation too.
        fixed=dict(num_channels=(3,), max_image_length=(-1,)),
        harmless=("position_embedding_type",),
    )
}

# The table of words; transformers ties the head's to it whatever the config says.
WORDS = "embeddings.text_embeddings.word_embeddings.weight"
# BERT's embeddings, which lie here without `embeddings.` in front.
TEXT = tuple(
    rule._replace(theirs=rule.theirs.removeprefix("embeddings.")) for rule in rows.BERT_EMBEDDINGS
)
IMAGE = (
    Rule("cls_token", "cls"),
    Rule("position_embeddings", "position_embedding", FIRST),
    *rows.conv("patch_embeddings.projection", "patch_embedding"),
)
FUSION = (
    Rule("embeddings.token_type_embeddings.weight", "type_embedding/embedding"),
    *rows.vit_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *rows.norm("layernorm", "merged_norm"),
    *rows.dense("pooler.dense", "text_pooler/dense"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    text = configs.bert_fields(config)
    answers, images = "classifier.0.weight" in names, count_images(config)
    vilt = configs.prefix(names, "vilt.")
    return dict(
        name="vilt",
        image_encoder=dict(
            width=config["hidden_size"],
            patch_size=configs.side(config["patch_size"]),
            image_size=configs.side(config["image_size"]),
            dropout_rate=text["dropout_rate"],
        ),
        text_encoder=text | {"depth": 0},
        fusion=dict(
            form="vilt",
            norm_style="pre",
            depth=config["num_hidden_layers"],
            num_types=config["modality_type_vocab_size"],
            qkv_bias=config["qkv_bias"],
            **configs.layer_fields(text),
        ),
        word_head=configs.score_table(names, vilt + WORDS, tied=True),
        matching="rank_output.weight" in names,
        labels=configs.count_labels(config) if answers else 0,
        # As wide as the images' vectors together, or for questions twice one vector.
        head_dim=config["hidden_size"] * (images or 2),
        num_images=max(images, 1) if answers else 1,
    )


def count_images(config: Mapping[str, Any]) -> int:
    """Images that the classifier of images and text reads; 0 for that of questions."""
    if configs.architecture(config, "ViltForQuestionAnswering"):
        return 0
    return max(int(config["num_images"]), 0)


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViLT checkpoint, with or without the prefix `vilt.`."""
    vilt = configs.prefix(names, "vilt.")
    return Table(
        rules=(
            *under(f"{vilt}embeddings.text_embeddings.", "text_encoder/", TEXT),
            *under(f"{vilt}embeddings.", "image_encoder/", IMAGE),
            *under(vilt, "fusion/", FUSION),
            *rows.word_head(
                "mlm_score.transform", "mlm_score.decoder.weight", "mlm_score.decoder.bias"
            ),
            *rows.dense("rank_output", "matching_head"),
            *rows.classifier("classifier", "head", "0 1 3"),
        ),
        tied=(
            ("mlm_score.bias", "mlm_score.decoder.bias"),
            *configs.score_tied(names, vilt + WORDS, tied=True),
        ),
        unused=(rows.POSITION_IDS,),
    )
