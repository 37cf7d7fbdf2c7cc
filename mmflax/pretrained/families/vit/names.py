"""Names of ViT's checkpoints (transformers' ViTModel and ViTForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    EPSILON,
    FLAG,
    RATE,
    SIDE,
    SIDES,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import FIRST, Rule, Table, under

MODEL_TYPES = ("vit",)
# Also of DeiT. The stride is that of a decoder for masked image modeling.
VIT = Keys(
    used=dict(
        hidden_size=Key(SIZE, 768),
        num_hidden_layers=Key(SIZE, 12),
        num_attention_heads=Key(SIZE, 12),
        intermediate_size=Key(SIZE, 3072),
        patch_size=Key(SIDE, 16),
        image_size=Key(SIDES, 224),
        qkv_bias=Key(FLAG, True),
        hidden_act=Key(ACTIVATION, "gelu"),
        layer_norm_eps=Key(EPSILON, 1e-12),
        hidden_dropout_prob=Key(RATE, 0.0),
        attention_probs_dropout_prob=Key(RATE, 0.0),
        pooler_output_size=Key(SIZE, None),
        pooler_act=Key(ACTIVATION, "tanh"),
    ),
    fixed=dict(num_channels=(3,)),
    harmless=("encoder_stride",),
)
KEYS = {"vit": VIT}

# Of the bare model, and our encoder `vit`.
ENCODER = (
    Rule("embeddings.cls_token", "cls"),
    Rule("embeddings.distillation_token", "distillation_token"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    *rows.conv("embeddings.patch_embeddings.projection", "patch_embedding"),
    *rows.vit_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *rows.norm("layernorm", "norm"),
)


def encoder_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`."""
    return dict(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        patch_size=configs.side(config["patch_size"]),
        image_size=configs.sides(config["image_size"]),
        any_size=True,
        crop=True,
        qkv_bias=config["qkv_bias"],
        activation=configs.activation(config["hidden_act"]),
        epsilon=config["layer_norm_eps"],
        dropout_rate=config["hidden_dropout_prob"],
        attention_dropout_rate=config["attention_probs_dropout_prob"],
        **more,
    )


def pooler_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the pooler, if the file has one."""
    if not configs.has(names, "pooler.dense.weight"):
        return {}
    return dict(
        pooler_dim=config["pooler_output_size"] or config["hidden_size"],
        pooler_activation=configs.activation(config["pooler_act"]),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="vit",
        image_encoder=encoder_fields(config),
        labels=configs.classifier_labels(config, names),
        **pooler_fields(config, names),
    )


def backbone(names: Collection[str], start: str) -> rows.Rows:
    """The encoder with its pooler, with or without the prefix."""
    vit = configs.prefix(names, start)
    return (
        *under(vit, "image_encoder/", ENCODER),
        *rows.dense(f"{vit}pooler.dense", "pooler/dense"),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViT checkpoint."""
    return Table(
        (*backbone(names, "vit."), *rows.dense("classifier", "head")), unused=(rows.MASK_TOKEN,)
    )
