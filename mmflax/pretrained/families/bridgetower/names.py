"""Names of BridgeTower's checkpoints (transformers' BridgeTowerModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.rules import CONV, FLAT, Rule, Table, under

MODEL_TYPES = ("bridgetower",)

IMAGE = (
    Rule("embeddings.class_embedding", "cls", FLAT),
    Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *rows.norm("ln_pre", "pre_norm_layer"),
    *rows.original_clip_layer("transformer.resblocks.{i}", "encoder/layers_{i}/"),
    *rows.norm("ln_post", "norm"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    if config.get("share_link_tower_layers"):
        raise MmflaxError(
            "the config has share_link_tower_layers true, which transformers itself cannot run; "
            "expected false, with one bridge a layer."
        )
    text, image = config["text_config"], config["vision_config"]
    encoder = configs.roberta_fields(text)
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
            **configs.layer_fields(encoder, configs.LAYER_FIELDS[1:]),
        ),
        word_head=configs.score_table(names),
        word_activation=configs.activation(config["hidden_act"]),
        word_epsilon=config["layer_norm_eps"],
        matching="itm_score.fc.weight" in names,
        contrastive=(
            config["contrastive_hidden_size"]
            if configs.has(names, "itc_text_head.fc.weight")
            else 0
        ),
    )


# The number of a link, by its type.
LINKS = {"scaled_add": "scaled_factor", "interpolate": "beta"}


def stream(name: str, config: Mapping[str, Any]) -> rows.Rows:
    """One side of the fusion, "text" or "image"; its first bridge is a norm with its own name."""
    theirs, link = f"cross_modal_{name}", LINKS.get(config.get("link_tower_type", "add"))
    return (
        *rows.dense(f"{theirs}_transform", f"{name}_projection"),
        *rows.dense(f"{theirs}_transform.{{i}}", f"{name}_{{i}}_projection"),
        *rows.norm(f"{theirs}_layernorm", f"encoder/layers_0/{name}_bridge"),
        *(
            row
            for i in range(1, config["num_hidden_layers"])
            for row in (
                *rows.norm(
                    f"{theirs}_link_tower.{i - 1}.LayerNorm", f"encoder/layers_{i}/{name}_bridge"
                ),
                Rule(f"{theirs}_link_tower.{i - 1}.{link}", f"{name}_bridge_{i}_scale"),
            )
        ),
        *rows.cross_layer(f"{theirs}_layers.{{i}}", f"encoder/layers_{{i}}/{name}/"),
        *rows.dense(f"{theirs}_pooler.dense", f"{name}_pooler/dense"),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BridgeTower checkpoint, with or without the prefix `bridgetower.`."""
    bridge = configs.prefix(names, "bridgetower.")
    return Table(
        rules=(
            *under(f"{bridge}vision_model.visual.", "image_encoder/", IMAGE),
            *under(f"{bridge}text_model.", "text_encoder/", rows.BERT),
            Rule(f"{bridge}token_type_embeddings.weight", "fusion/type_embedding/embedding"),
            *under(bridge, "fusion/", (*stream("text", config), *stream("image", config))),
            *rows.word_head("mlm_score.transform", "mlm_score.decoder.weight", "mlm_score.bias"),
            *rows.dense("itm_score.fc", "matching_head"),
            *rows.dense("itc_text_head.fc", "text_contrast"),
            *rows.dense("itc_image_head.fc", "image_contrast"),
            *rows.dense("itc_cross_modal_head.fc", "cross_contrast"),
            Rule("logit_scale", "logit_scale"),
        ),
        unused=(
            # BERT's own pooler and the separate last norms, which no forward pass reads.
            r"text_model\.pooler\.",
            r"vision_model\.visual\.ln_separate\.",
            rows.POSITION_IDS,
        ),
    )
