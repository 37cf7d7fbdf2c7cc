"""Names of ViT's checkpoints (transformers' ViTModel and ViTForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import (
    activation,
    attention,
    count_labels,
    dense,
    has,
    norm,
)
from mmflax.pretrained.rules import CONV, FIRST, Rule, Table, under

MODEL_TYPES = ("vit",)


def layer(theirs: str, query: str, out: str, mlp: tuple[str, str]) -> tuple[Rule, ...]:
    """One layer; `query` holds a place for the three names."""
    ours = "encoder/layers_{i}"
    q, k, v = (f"{theirs}.{query % name}" for name in ("query", "key", "value"))
    return (
        *norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm"),
        *attention(q, k, v, f"{theirs}.{out}", f"{ours}/attention"),
        *norm(f"{theirs}.layernorm_after", f"{ours}/mlp_norm"),
        *dense(f"{theirs}.{mlp[0]}", f"{ours}/mlp/fc1"),
        *dense(f"{theirs}.{mlp[1]}", f"{ours}/mlp/fc2"),
    )


# Of the bare model, and our encoder `vit`.
ENCODER = (
    Rule("embeddings.cls_token", "cls"),
    Rule("embeddings.distillation_token", "distillation_token"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
    *layer(
        "encoder.layer.{i}", "attention.attention.%s", "attention.output.dense",
        ("intermediate.dense", "output.dense"),
    ),
    *norm("layernorm", "norm"),
)  # fmt: skip


def sides(value: Any) -> Any:
    """A size as configs write it: a number, or two of them."""
    return tuple(value) if isinstance(value, list | tuple) else value


def side(value: Any) -> Any:
    """A size that has to be square here."""
    pair = sides(value)
    return pair[0] if isinstance(pair, tuple) and pair[0] == pair[1] else pair


def encoder_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`; what it leaves out is as transformers has it."""
    return dict(
        width=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        patch_size=side(config.get("patch_size", 16)),
        image_size=sides(config.get("image_size", 224)),
        any_size=True,
        crop=True,
        qkv_bias=config.get("qkv_bias", True),
        activation=activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout_rate=config.get("hidden_dropout_prob", 0.0),
        attention_dropout_rate=config.get("attention_probs_dropout_prob", 0.0),
        **more,
    )


def pooler_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the pooler, if the file has one."""
    if not has(names, "pooler.dense.weight"):
        return {}
    return dict(
        pooler_dim=config.get("pooler_output_size") or config.get("hidden_size", 768),
        pooler_activation=activation(config.get("pooler_act", "tanh")),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    return dict(
        name="vit",
        image_encoder=encoder_fields(config),
        labels=count_labels(config) if "classifier.weight" in names else 0,
        **pooler_fields(config, names),
    )


def rows(names: Collection[str], prefix: str) -> tuple[Rule, ...]:
    """Of the encoder with its pooler, with or without the prefix."""
    found = prefix if any(name.startswith(prefix) for name in names) else ""
    return (
        *under(found, "image_encoder/", ENCODER),
        *dense(f"{found}pooler.dense", "pooler/dense"),
    )


# Stands for hidden patches in masked image modelling, and nowhere else.
UNUSED = (r"embeddings\.mask_token$",)


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViT checkpoint."""
    return Table((*rows(names, "vit."), *dense("classifier", "head")), unused=UNUSED)
