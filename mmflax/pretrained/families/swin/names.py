"""Names of Swin's checkpoints (transformers' SwinModel and SwinForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    EPSILON,
    FLAG,
    POSITIVE,
    RATE,
    SIDE,
    SIDES,
    SIZE,
    SIZES,
    Key,
    Keys,
)
from mmflax.pretrained.rules import FIRST, LINEAR, Rule, Table, under

MODEL_TYPES = ("swin",)
KEYS = {
    "swin": Keys(
        used=dict(
            embed_dim=Key(SIZE, 96),
            depths=Key(SIZES, (2, 2, 6, 2)),
            num_heads=Key(SIZES, (3, 6, 12, 24)),
            window_size=Key(SIZE, 7),
            mlp_ratio=Key(POSITIVE, 4.0),
            patch_size=Key(SIDE, 4),
            image_size=Key(SIDES, 224),
            qkv_bias=Key(FLAG, True),
            use_absolute_embeddings=Key(FLAG, False),
            hidden_act=Key(ACTIVATION, "gelu"),
            layer_norm_eps=Key(EPSILON, 1e-5),
            hidden_dropout_prob=Key(RATE, 0.0),
            attention_probs_dropout_prob=Key(RATE, 0.0),
            drop_path_rate=Key(RATE, 0.1),
        ),
        fixed=dict(num_channels=(3,)),
        # They follow from the others, are of a decoder for masked image modeling, or are read by
        # the authors' own code only.
        harmless=(*configs.BACKBONE, "hidden_size", "num_layers", "encoder_stride", "path_norm"),
        equally_long=("depths", "num_heads"),
    )
}

THEIRS, OURS = "encoder.layers.{s}.blocks.{i}", "stage_{s}/layers_{i}"
INNER = f"{THEIRS}.attention.self"

# Of the bare model, and our encoder `swin`.
ENCODER = (
    *rows.conv("embeddings.patch_embeddings.projection", "patch_embedding"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    *rows.norm("embeddings.norm", "embedding_norm"),
    *rows.norm(f"{THEIRS}.layernorm_before", f"{OURS}/attention_norm"),
    Rule(
        f"{INNER}.relative_position_bias_table", f"{OURS}/attention/relative_position_embedding"
    ),
    *rows.attention(
        f"{INNER}.query", f"{INNER}.key", f"{INNER}.value", f"{THEIRS}.attention.output.dense",
        f"{OURS}/attention/windows",
    ),
    *rows.norm(f"{THEIRS}.layernorm_after", f"{OURS}/mlp_norm"),
    *rows.dense(f"{THEIRS}.intermediate.dense", f"{OURS}/mlp/fc1"),
    *rows.dense(f"{THEIRS}.output.dense", f"{OURS}/mlp/fc2"),
    *rows.norm("encoder.layers.{s}.downsample.norm", "merging_{s}/norm"),
    Rule("encoder.layers.{s}.downsample.reduction.weight", "merging_{s}/reduction/kernel", LINEAR),
    *rows.norm("layernorm", "norm"),
)  # fmt: skip


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`."""
    return dict(
        width=config["embed_dim"],
        depths=tuple(config["depths"]),
        num_heads=tuple(config["num_heads"]),
        window_size=config["window_size"],
        mlp_ratio=config["mlp_ratio"],
        patch_size=configs.side(config["patch_size"]),
        image_size=configs.sides(config["image_size"]),
        qkv_bias=config["qkv_bias"],
        position="learned" if config["use_absolute_embeddings"] else "none",
        activation=configs.activation(config["hidden_act"]),
        epsilon=config["layer_norm_eps"],
        dropout_rate=config["hidden_dropout_prob"],
        attention_dropout_rate=config["attention_probs_dropout_prob"],
        drop_path_rate=config["drop_path_rate"],
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="grid",
        image_encoder=dict(name="swin", **encoder_fields(config)),
        labels=configs.classifier_labels(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a Swin checkpoint, with or without the prefix `swin.`."""
    return Table(
        (
            *under(configs.prefix(names, "swin."), "image_encoder/", ENCODER),
            *rows.dense("classifier", "head"),
        ),
        unused=(
            # Follows from the window's size; kept as a buffer by older releases.
            r"relative_position_index$",
            rows.MASK_TOKEN,
        ),
    )
