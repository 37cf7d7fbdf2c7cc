"""Names of BridgeTower's checkpoints (transformers' BridgeTowerModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families.bert.names import (
    ENCODER,
    activation,
    bert_attention,
    bert_mlp,
    dense,
    has,
    norm,
    word_head,
    words,
)
from mmflax.pretrained.families.roberta.names import text_fields
from mmflax.pretrained.rules import CONV, FLAT, LINEAR, LINEAR_OUT, Rule, Table, split, under

MODEL_TYPES = ("bridgetower",)

PREFIX = "bridgetower."


def clip_block(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A layer as OpenAI's CLIP names it, query, key and value in one tensor; `ours` ends in "/"."""
    attention = f"{ours}attention"
    parts = [f"{attention}/{part}" for part in ("query", "key", "value")]
    return (
        Rule(f"{theirs}.attn.in_proj_weight", tuple(f"{p}/kernel" for p in parts), split(LINEAR)),
        Rule(f"{theirs}.attn.in_proj_bias", tuple(f"{p}/bias" for p in parts), split(FLAT)),
        Rule(f"{theirs}.attn.out_proj.weight", f"{attention}/out/kernel", LINEAR_OUT),
        Rule(f"{theirs}.attn.out_proj.bias", f"{attention}/out/bias"),
        *norm(f"{theirs}.ln_1", f"{ours}attention_norm"),
        *norm(f"{theirs}.ln_2", f"{ours}mlp_norm"),
        *dense(f"{theirs}.mlp.c_fc", f"{ours}mlp/fc1"),
        *dense(f"{theirs}.mlp.c_proj", f"{ours}mlp/fc2"),
    )


def cross_layer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """METER's layer of one stream: self-attention, cross-attention, MLP; `ours` ends in "/"."""
    return (
        *bert_attention(f"{theirs}.attention", f"{ours}attention"),
        *bert_attention(f"{theirs}.crossattention", f"{ours}cross_attention"),
        *bert_mlp(theirs, ours),
    )


IMAGE = (
    Rule("embeddings.class_embedding", "cls", FLAT),
    Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *norm("ln_pre", "pre_norm_layer"),
    *clip_block("transformer.resblocks.{i}", "encoder/layers_{i}/"),
    *norm("ln_post", "norm"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    if config.get("share_link_tower_layers"):
        raise MmflaxError(
            "the config has share_link_tower_layers true, which transformers itself cannot run; "
            "expected false, with one bridge a layer."
        )
    text, image = config["text_config"], config["vision_config"]
    encoder = text_fields(text)
    return dict(
        name="bridgetower",
        image_encoder=dict(
            image_size=image["image_size"],
            patch_size=image["patch_size"],
            width=image["hidden_size"],
            depth=image["num_hidden_layers"] - bool(image.get("remove_last_layer")),
            num_heads=image["hidden_size"] // 64,
            epsilon=image["layer_norm_eps"],
            any_size=True,
        ),
        text_encoder=encoder,
        fusion=dict(
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            bridge_epsilon=config["layer_norm_eps"],
            link=config.get("link_tower_type", "add"),
            share_projections=config.get("share_cross_modal_transformer_layers", True),
            # transformers makes the fusion's layers with the text encoder's config.
            **{key: encoder[key] for key in LAYER_FIELDS},
        ),
        word_head=words(names),
        word_activation=activation(config["hidden_act"]),
        word_epsilon=config["layer_norm_eps"],
        matching="itm_score.fc.weight" in names,
        contrastive=(
            config["contrastive_hidden_size"] if has(names, "itc_text_head.fc.weight") else 0
        ),
    )


LAYER_FIELDS = (
    "num_heads", "mlp_dim", "activation", "epsilon", "dropout_rate", "attention_dropout_rate",
)  # fmt: skip


# The number of a link, by its type.
LINKS = {"scaled_add": "scaled_factor", "interpolate": "beta"}


def stream(name: str, config: Mapping[str, Any]) -> tuple[Rule, ...]:
    """One side of the fusion, "text" or "image"; its first bridge is a norm with its own name."""
    theirs, link = f"cross_modal_{name}", LINKS.get(config.get("link_tower_type", "add"))
    return (
        *dense(f"{theirs}_transform", f"{name}_projection"),
        *dense(f"{theirs}_transform.{{i}}", f"{name}_{{i}}_projection"),
        *norm(f"{theirs}_layernorm", f"encoder/layers_0/{name}_bridge"),
        *(
            row
            for i in range(1, config["num_hidden_layers"])
            for row in (
                *norm(
                    f"{theirs}_link_tower.{i - 1}.LayerNorm", f"encoder/layers_{i}/{name}_bridge"
                ),
                Rule(f"{theirs}_link_tower.{i - 1}.{link}", f"{name}_bridge_{i}_scale"),
            )
        ),
        *cross_layer(f"{theirs}_layers.{{i}}", f"encoder/layers_{{i}}/{name}/"),
        *dense(f"{theirs}_pooler.dense", f"{name}_pooler/dense"),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BridgeTower checkpoint, with or without the prefix `bridgetower.`."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    return Table(
        rules=(
            *under(f"{prefix}vision_model.visual.", "image_encoder/", IMAGE),
            *under(f"{prefix}text_model.", "text_encoder/", ENCODER),
            Rule(f"{prefix}token_type_embeddings.weight", "fusion/type_embedding/embedding"),
            *under(prefix, "fusion/", (*stream("text", config), *stream("image", config))),
            *word_head("mlm_score.transform", "mlm_score.decoder.weight", "mlm_score.bias"),
            *dense("itm_score.fc", "matching_head"),
            *dense("itc_text_head.fc", "text_contrast"),
            *dense("itc_image_head.fc", "image_contrast"),
            *dense("itc_cross_modal_head.fc", "cross_contrast"),
            Rule("logit_scale", "logit_scale"),
        ),
        unused=(
            # BERT's own pooler and the separate last norms, which no forward pass reads.
            r"text_model\.pooler\.",
            r"vision_model\.visual\.ln_separate\.",
            # Constants, saved as buffers by older releases.
            r"embeddings\.(position_ids|token_type_ids)$",
        ),
    )
