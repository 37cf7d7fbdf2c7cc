"""Names of BridgeTower's checkpoints (transformers' BridgeTowerModel and its heads)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    COUNT,
    EPSILON,
    FLAG,
    SIDE,
    SIZE,
    WIDTH,
    Key,
    Keys,
    one_of,
)
from mmflax.pretrained.rules import CONV, FLAT, Rule, Table, under

MODEL_TYPES = ("bridgetower",)

# The configs of both encoders, with the defaults of transformers' classes.
TEXT_CONFIG = Keys(
    used=configs.BERT_USED
    | dict(
        vocab_size=Key(SIZE, 50265),
        max_position_embeddings=Key(SIZE, 514),
        type_vocab_size=Key(SIZE, 1),
        layer_norm_eps=Key(EPSILON, 1e-5),
        pad_token_id=Key(COUNT, 1),
    ),
    fixed=configs.BERT_FIXED,
    harmless=("classifier_dropout",),
)
IMAGE_CONFIG = Keys(
    used=dict(
        hidden_size=Key(WIDTH, 768),
        num_hidden_layers=Key(SIZE, 12),
        patch_size=Key(SIDE, 16),
        image_size=Key(SIDE, 288),
        layer_norm_eps=Key(EPSILON, 1e-5),
        remove_last_layer=Key(FLAG, False),
    ),
    fixed=dict(num_channels=(3,)),
    # The heads are 64 wide, the MLP is 4 times as wide as the layer, and QuickGELU lies in it. Of
    # `share_layernorm`: norms that are there and not read.
    harmless=(
        "hidden_act", "intermediate_size", "num_attention_heads", "projection_dim",
        "share_layernorm", "stop_gradient",
    ),
)  # fmt: skip
KEYS = {
    "bridgetower": Keys(
        used=dict(
            hidden_size=Key(SIZE, 768),
            num_hidden_layers=Key(SIZE, 6),
            layer_norm_eps=Key(EPSILON, 1e-5),
            hidden_act=Key(ACTIVATION, "gelu"),
            link_tower_type=Key(one_of("add", "scaled_add", "interpolate"), "add"),
            share_cross_modal_transformer_layers=Key(FLAG, True),
            contrastive_hidden_size=Key(SIZE, None),
            tie_word_embeddings=Key(FLAG, False),
        ),
        # transformers itself cannot run the other value.
        fixed=dict(share_link_tower_layers=(False,)),
        # The fusion's layers follow the text encoder's config. From `cache_dir` on: the original
        # program's settings, which transformers never read, in the files of the first ones.
        harmless=(
            "num_attention_heads", "init_layernorm_from_vision_encoder", "logit_scale_init_value",
            "text_config_dict", "vision_config_dict", "attention_probs_dropout_prob",
            "hidden_dropout_prob", "intermediate_size", "stop_gradient", "vocab_size",
            "cache_dir", "classifier_drop_rate", "cross_modal_transform_shared",
            "downstream_fusion", "downstream_fusion_layers", "downstream_fusion_method",
            "drop_rate", "freeze_RoBERTa", "freeze_ViT", "freeze_layer_count_roberta",
            "freeze_layer_count_vit", "head_hidden_scale", "image_size", "input_image_embed_size",
            "input_text_embed_size", "link_tower_shared", "log_dir", "loss_names", "max_text_len",
            "mlp_ratio", "nlvr2_head_format", "num_layers", "num_nodes",
            "only_load_cross_modal_from_meter", "patch_size", "resolution_before",
            "task_head_layers", "test_only", "tokenizer", "unfreeze_RoBERTa_attention",
            "unfreeze_RoBERTa_embeddings", "unfreeze_RoBERTa_encoder",
            "unfreeze_RoBERTa_layernorm", "unfreeze_ViT_attention",
            "unfreeze_ViT_layernorm", "vit", "vit_embed_dim", "vit_layernorm_init_from_vit",
            "vit_layernorm_shared", "vit_num_hidden_layers", "vit_patch_size", "vit_remove_last",
            "vit_stop_gradient", "vit_transformer_width", "vit_width", "vqav2_label_size",
        ),
        parts=dict(text_config=TEXT_CONFIG, vision_config=IMAGE_CONFIG),
    )
}  # fmt: skip

IMAGE = (
    Rule("embeddings.class_embedding", "cls", FLAT),
    Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *rows.norm("ln_pre", "pre_norm_layer"),
    *rows.original_clip_layer("transformer.resblocks.{i}", "encoder/layers_{i}/"),
    *rows.norm("ln_post", "norm"),
)


def words(config: Mapping[str, Any], names: Collection[str]) -> tuple[str, bool]:
    """The name of the words' table, and whether the word head's is tied to it."""
    bridge = configs.prefix(names, "bridgetower.")
    return f"{bridge}text_model.{configs.WORD_TABLE}", config["tie_word_embeddings"]


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    text, image = config["text_config"], config["vision_config"]
    encoder = configs.roberta_fields(text)
    return dict(
        name="bridgetower",
        image_encoder=dict(
            image_size=configs.side(image["image_size"]),
            patch_size=configs.side(image["patch_size"]),
            width=image["hidden_size"],
            depth=image["num_hidden_layers"] - bool(image["remove_last_layer"]),
            num_heads=image["hidden_size"] // 64,
            epsilon=image["layer_norm_eps"],
            any_size=True,
        ),
        text_encoder=encoder,
        fusion=dict(
            width=config["hidden_size"],
            depth=config["num_hidden_layers"],
            bridge_epsilon=config["layer_norm_eps"],
            link=config["link_tower_type"],
            share_projections=config["share_cross_modal_transformer_layers"],
            # transformers makes the fusion's layers with the text encoder's config.
            **configs.layer_fields(encoder, configs.LAYER_FIELDS[1:]),
        ),
        word_head=configs.score_table(names, *words(config, names)),
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
    theirs, link = f"cross_modal_{name}", LINKS.get(config["link_tower_type"])
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
        tied=configs.score_tied(names, *words(config, names)),
        unused=(
            # BERT's own pooler and the separate last norms, which no forward pass reads.
            r"text_model\.pooler\.",
            r"vision_model\.visual\.ln_separate\.",
            rows.POSITION_IDS,
        ),
    )
