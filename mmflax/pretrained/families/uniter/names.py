"""Names of UNITER's checkpoints, as github.com/ChenRocks/UNITER saves them.

The original has no config.json. One may stand beside the weights, with the keys of its own model
config (`config/uniter-base.json`: `hidden_size`, `num_hidden_layers` …), `"model_type": "uniter"`,
and what the program gets elsewhere: `num_answer` (3129), `img_dim` (2048), `img_label_dim` (1601),
and for a model of NLVR2 `nlvr2` ("paired" or "triplet", whose tensors have the same names). Without
it all of that is read from the shapes (`recognize`).
"""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    SIZE,
    Key,
    Keys,
    Kind,
    one_of,
)
from mmflax.pretrained.rules import Rule, Shape, Table, under

MODEL_TYPES = ("uniter",)

# One of words and at least one of regions.
TYPES_OF_TOKENS = Kind("a whole number from 2 on", lambda value: type(value) is int and value > 1)
KEYS = {
    "uniter": Keys(
        used={key: configs.BERT_USED[key] for key in configs.BERT_USED if key != "layer_norm_eps"}
        | dict(
            vocab_size=Key(SIZE, 28996),
            type_vocab_size=Key(TYPES_OF_TOKENS, 2),
            num_answer=Key(SIZE, 3129),
            img_dim=Key(SIZE, 2048),
            img_label_dim=Key(SIZE, 1601),
            nlvr2=Key(one_of("paired", "triplet"), "paired"),
        ),
        # Every norm of the original has this epsilon.
        fixed=dict(layer_norm_eps=(1e-12,)),
    )
}

TEXT = (
    Rule("word_embeddings.weight", "word_embedding/embedding"),
    Rule("position_embeddings.weight", "position_embedding/embedding"),
    *rows.norm("LayerNorm", "embedding_norm"),
)
REGIONS = (
    *rows.dense("img_linear", "feature_projection"),
    *rows.norm("img_layer_norm", "feature_norm"),
    *rows.dense("pos_linear", "box_projection"),
    *rows.norm("pos_layer_norm", "box_norm"),
    Rule("mask_embedding.weight", "hidden_embedding/embedding"),
    *rows.norm("LayerNorm", "norm"),
)
# Row 0 is the words', the others are the regions'.
TYPES = Rule(
    "embeddings.token_type_embeddings.weight",
    ("text_encoder/token_type_embedding/embedding", "image_encoder/type_embedding/embedding"),
)


def backbone(names: Collection[str]) -> str:
    """`uniter.`, `module.uniter.` or nothing."""
    return configs.prefix_of(names, "UNITER")


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    text = configs.bert_fields({**config, "layer_norm_eps": 1e-12})
    features = config["img_dim"]
    pair = "none"
    if configs.has(names, "nlvr2_output.weight"):
        attends = configs.has(names, "attn1.in_proj_weight")
        pair = "paired_attn" if attends else config["nlvr2"]
    return dict(
        name="uniter",
        text_encoder=text | dict(depth=0, num_token_types=1),
        image_encoder=dict(
            form="uniter",
            width=config["hidden_size"],
            feature_dim=features,
            # A third row is added before NLVR2 is learned, for the second image.
            num_types=config["type_vocab_size"] - 1 + (pair != "none"),
            mask_embedding=True,
            dropout_rate=text["dropout_rate"],
        ),
        fusion=dict(
            form="uniter",
            depth=config["num_hidden_layers"],
            **configs.layer_fields(text),
        ),
        answers=config["num_answer"] if configs.has(names, "vqa_output.3.weight") else 0,
        pair=pair,
        matching=configs.has(names, "itm_output.weight"),
        ranking=configs.has(names, "rank_output.weight"),
        word_head=configs.has(names, "cls.predictions.bias"),
        feature_head=configs.has(names, "feat_regress.bias"),
        region_labels=(
            config["img_label_dim"] if configs.has(names, "region_classifier.net.3.bias") else 0
        ),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a UNITER checkpoint, with the prefix that this one has."""
    uniter = backbone(names)
    root = uniter.removesuffix("uniter.")
    words, regions = f"{root}cls.predictions", f"{root}region_classifier.net"
    features = f"{root}feat_regress"
    return Table(
        rules=(
            *under(f"{uniter}embeddings.", "text_encoder/", TEXT),
            *under(f"{uniter}img_embeddings.", "image_encoder/", REGIONS),
            *under(uniter, "", (TYPES,)),
            *under(
                f"{uniter}encoder.", "fusion/", rows.bert_layer("layer.{i}", "encoder/layers_{i}/")
            ),
            *rows.dense(f"{uniter}pooler.dense", "fusion/text_pooler/dense"),
            *rows.classifier(f"{root}vqa_output", "head"),
            *rows.dense(f"{root}itm_output", "matching_head"),
            *rows.dense(f"{root}rank_output", "ranking_head"),
            *rows.dense(f"{root}nlvr2_output", "pair_head"),
            *rows.joined_attention(f"{root}attn1", "pair_attention/left_attention"),
            *rows.joined_attention(f"{root}attn2", "pair_attention/right_attention"),
            *rows.dense(f"{root}fc.0", "pair_attention/join"),
            *rows.dense(f"{root}attn_pool.fc.0", "pair_attention/score"),
            *rows.word_head(f"{words}.transform", f"{words}.decoder.weight", f"{words}.bias"),
            *rows.dense(f"{features}.net.0", "feature_head/dense"),
            *rows.norm(f"{features}.net.2", "feature_head/norm"),
            Rule(f"{features}.bias", "feature_head/bias"),
            *rows.dense(f"{regions}.0", "region_head/dense"),
            *rows.norm(f"{regions}.2", "region_head/norm"),
            *rows.dense(f"{regions}.3", "region_head"),
        ),
        tied=(
            (f"{words}.decoder.weight", uniter + configs.WORD_TABLE),
            (f"{features}.weight", f"{uniter}img_embeddings.img_linear.weight"),
        ),
    )


def recognize(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The config of a file without one, if it is UNITER's.

    Sizes are read from the shapes. What shapes do not show is as published: heads 64 wide, GELU,
    dropout 0.1.
    """
    regions = "img_embeddings.img_linear.weight"
    if not configs.has(shapes, regions):
        return None
    uniter = backbone(shapes)
    root = uniter.removesuffix("uniter.")
    config: dict[str, Any] = dict(
        model_type="uniter",
        **configs.bert_config(shapes, uniter, "UNITER"),
        img_dim=shapes[f"{uniter}{regions}"][1],
    )
    for key, name in (
        ("num_answer", "vqa_output.3.weight"),
        ("img_label_dim", "region_classifier.net.3.weight"),
    ):
        if root + name in shapes:
            config[key] = shapes[root + name][0]
    pair = shapes.get(f"{root}nlvr2_output.weight")
    if pair is not None:
        config["nlvr2"] = "triplet" if pair[1] == config["hidden_size"] else "paired"
        config["type_vocab_size"] -= 1  # counted without the row that NLVR2 adds
    return config
