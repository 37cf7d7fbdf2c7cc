"""Names of ViLT's checkpoints (transformers' ViltModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families.bert.names import (
    ENCODER,
    attention,
    count_labels,
    dense,
    encoder_fields,
    norm,
    word_head,
    words,
)
from mmflax.pretrained.rules import CONV, FIRST, Rule, Table, under

MODEL_TYPES = ("vilt",)

PREFIX = "vilt."


def vit_layer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A layer as transformers' ViT names it; `ours` ends in "/"."""
    inner = f"{theirs}.attention.attention"
    out = f"{theirs}.attention.output.dense"
    return (
        *attention(f"{inner}.query", f"{inner}.key", f"{inner}.value", out, f"{ours}attention"),
        *norm(f"{theirs}.layernorm_before", f"{ours}attention_norm"),
        *norm(f"{theirs}.layernorm_after", f"{ours}mlp_norm"),
        *dense(f"{theirs}.intermediate.dense", f"{ours}mlp/fc1"),
        *dense(f"{theirs}.output.dense", f"{ours}mlp/fc2"),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    text = encoder_fields(config)
    shared = ("width", "num_heads", "mlp_dim", "activation", "epsilon")
    drops = ("dropout_rate", "attention_dropout_rate")
    answers, images = "classifier.0.weight" in names, count_images(config)
    return dict(
        name="vilt",
        image_encoder=dict(
            width=config["hidden_size"],
            patch_size=config["patch_size"],
            image_size=config["image_size"],
            dropout_rate=text["dropout_rate"],
        ),
        text_encoder=text | {"depth": 0},
        fusion=dict(
            form="vilt",
            norm_style="pre",
            depth=config["num_hidden_layers"],
            num_types=config["modality_type_vocab_size"],
            qkv_bias=config["qkv_bias"],
            **{key: text[key] for key in shared + drops},
        ),
        word_head=words(names),
        matching="rank_output.weight" in names,
        labels=count_labels(config) if answers else 0,
        # As wide as the images' vectors together, or for questions twice one vector.
        head_dim=config["hidden_size"] * (images or 2),
        num_images=max(images, 1) if answers else 1,
    )


def count_images(config: Mapping[str, Any]) -> int:
    """Images that the classifier of images and text reads; 0 for that of questions."""
    if "ViltForQuestionAnswering" in (config.get("architectures") or ()):
        return 0
    count = int(config.get("num_images", -1))
    if count > 2:
        raise MmflaxError(f"num_images is {count}; expected 1 or 2 images for one text.")
    return max(count, 0)


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViLT checkpoint, with or without the prefix `vilt.`."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    embeddings = tuple(rule for rule in ENCODER if rule.theirs.startswith("embeddings."))
    return Table(
        rules=(
            *under(
                "", "text_encoder/", renamed(embeddings, f"{prefix}embeddings.text_embeddings.")
            ),
            Rule(f"{prefix}embeddings.cls_token", "image_encoder/cls"),
            Rule(
                f"{prefix}embeddings.position_embeddings", "image_encoder/position_embedding", FIRST
            ),
            Rule(
                f"{prefix}embeddings.patch_embeddings.projection.weight",
                "image_encoder/patch_embedding/kernel",
                CONV,
            ),
            Rule(
                f"{prefix}embeddings.patch_embeddings.projection.bias",
                "image_encoder/patch_embedding/bias",
            ),
            Rule(
                f"{prefix}embeddings.token_type_embeddings.weight",
                "fusion/type_embedding/embedding",
            ),
            *vit_layer(f"{prefix}encoder.layer.{{i}}", "fusion/encoder/layers_{i}/"),
            *norm(f"{prefix}layernorm", "fusion/merged_norm"),
            *dense(f"{prefix}pooler.dense", "fusion/text_pooler/dense"),
            *word_head("mlm_score.transform", "mlm_score.decoder.weight", "mlm_score.decoder.bias"),
            *dense("rank_output", "matching_head"),
            *dense("classifier.0", "head/fc1"),
            *norm("classifier.1", "head/norm"),
            *dense("classifier.3", "head/fc2"),
        ),
        tied=(("mlm_score.bias", "mlm_score.decoder.bias"),),
        # Constants, saved as buffers by older releases.
        unused=(r"text_embeddings\.(position_ids|token_type_ids)$",),
    )


def renamed(rules: tuple[Rule, ...], prefix: str) -> tuple[Rule, ...]:
    """BERT's embeddings, which lie here without `embeddings.` in front."""
    return tuple(
        rule._replace(theirs=prefix + rule.theirs.removeprefix("embeddings.")) for rule in rules
    )
