"""Names of CLIP's checkpoints: transformers' CLIPModel and its parts, and OpenAI's own layout.

OpenAI's own files are recognized by their names and by the numbers that they hold beside the
tensors. open_clip keeps the layout and leaves the numbers out: its models have GELU or QuickGELU,
which no tensor shows, and need an `open_clip_config.json` or a `config.json` beside them.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    COUNT,
    EPSILON,
    RATE,
    SIDE,
    SIDES,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import FLAT, LINEAR, Rule, Shape, Table, under

MODEL_TYPES = ("clip", "clip_text_model", "clip_vision_model")

# Of both sides and of SigLIP's; each side's config, with the defaults of transformers' classes.
TOWER = dict(
    hidden_size=Key(SIZE, 768),
    intermediate_size=Key(SIZE, 3072),
    num_hidden_layers=Key(SIZE, 12),
    num_attention_heads=Key(SIZE, 12),
    hidden_act=Key(ACTIVATION, "quick_gelu"),
    layer_norm_eps=Key(EPSILON, 1e-5),
    attention_dropout=Key(RATE, 0.0),
)
VISION = Keys(
    used=TOWER
    | dict(image_size=Key(SIDES, 224), patch_size=Key(SIDE, 32), projection_dim=Key(SIZE, 512)),
    fixed=dict(num_channels=(3,)),
    harmless=("dropout",),
)
TEXT = Keys(
    used=TOWER
    | dict(
        hidden_size=Key(SIZE, 512),
        intermediate_size=Key(SIZE, 2048),
        num_attention_heads=Key(SIZE, 8),
        vocab_size=Key(SIZE, 49408),
        max_position_embeddings=Key(SIZE, 77),
        eos_token_id=Key(COUNT, 49407),
        projection_dim=Key(SIZE, 512),
    ),
    harmless=("dropout",),
)
KEYS = {
    "clip": Keys(
        used=dict(projection_dim=Key(SIZE, 512)),
        harmless=("logit_scale_init_value",),
        parts=dict(text_config=TEXT, vision_config=VISION),
        older=("text_config", "vision_config"),
    ),
    "clip_text_model": TEXT,
    "clip_vision_model": VISION,
}

# What OpenAI's files hold beside the parameters, and no other program's.
ORIGINAL_NUMBERS = ("input_resolution", "context_length", "vocab_size")

# transformers' CLIPVisionModel and our encoder `clip_vision`; SigLIP's has fewer of these rows.
VISION_RULES = (
    Rule("embeddings.class_embedding", "cls", FLAT),
    *rows.conv("embeddings.patch_embedding", "patch_embedding"),
    Rule("embeddings.position_embedding.weight", "position_embedding"),
    *rows.norm("pre_layrnorm", "pre_norm_layer"),
    *rows.clip_layer("encoder.layers.{i}", "encoder/layers_{i}/"),
    *rows.norm("post_layernorm", "norm"),
)
# transformers' CLIPTextModel and our encoder `clip_text`; SigLIP's is the same.
TEXT_RULES = (
    Rule("embeddings.token_embedding.weight", "word_embedding/embedding"),
    Rule("embeddings.position_embedding.weight", "position_embedding/embedding"),
    *rows.clip_layer("encoder.layers.{i}", "encoder/layers_{i}/"),
    *rows.norm("final_layer_norm", "norm"),
)
ORIGINAL_TEXT = (
    Rule("token_embedding.weight", "word_embedding/embedding"),
    Rule("positional_embedding", "position_embedding/embedding"),
    *rows.original_clip_layer("transformer.resblocks.{i}", "encoder/layers_{i}/"),
    *rows.norm("ln_final", "norm"),
)


def one_side(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The config of one side (`vision` or `text`), which is the whole of a checkpoint of one."""
    if f"_{name}" in str(config.get("model_type")):
        return config
    side: Mapping[str, Any] = config[f"{name}_config"]
    return side


def tower_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords that the encoders of both sides have."""
    return dict(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        activation=configs.activation(config["hidden_act"]),
        epsilon=config["layer_norm_eps"],
        attention_dropout_rate=config["attention_dropout"],
    )


def vision_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of the image encoder; it takes images of other sizes, resampling positions."""
    return dict(
        **tower_fields(config),
        image_size=configs.sides(config["image_size"]),
        patch_size=configs.side(config["patch_size"]),
        any_size=True,
        crop=True,
        **more,
    )


def text_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of the text encoder."""
    return dict(
        **tower_fields(config),
        vocab_size=config["vocab_size"],
        max_length=config["max_position_embeddings"],
        **more,
    )


def is_original(names: Collection[str]) -> bool:
    """Whether the file is in OpenAI's layout."""
    return configs.has(names, "visual.class_embedding")


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(name="clip")
    if configs.has(names, "class_embedding"):
        fields["image_encoder"] = vision_fields(one_side(config, "vision"))
    if configs.has(names, "token_embedding.weight"):
        text = one_side(config, "text")
        # Early configs have a wrong end token, 2, which transformers reads as OpenAI's rule.
        end = None if text["eos_token_id"] == 2 or is_original(names) else text["eos_token_id"]
        fields["text_encoder"] = text_fields(text, end_token=end)
    if is_original(names) or {"visual_projection.weight", "text_projection.weight"} & set(names):
        fields["projection"] = config["projection_dim"]
    return fields | dict(labels=configs.classifier_labels(config, names))


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a CLIP checkpoint."""
    if is_original(names):
        # open_clip's models with a text encoder of their own call it `text`.
        text = "text." if "text.token_embedding.weight" in names else ""
        return Table(
            rules=(
                *under("visual.", "image_encoder/", rows.ORIGINAL_CLIP_VISION),
                *under(text, "text_encoder/", ORIGINAL_TEXT),
                Rule("visual.proj", "image_projection/kernel"),
                Rule(f"{text}text_projection", "text_projection/kernel"),
                Rule("logit_scale", "logit_scale"),
            ),
            # Numbers of the architecture, and a mask that early files of open_clip hold.
            unused=(f"^({'|'.join(ORIGINAL_NUMBERS)})$", r"(^|\.)attn_mask$"),
        )
    return Table(
        rules=(
            *under(configs.prefix(names, "vision_model."), "image_encoder/", VISION_RULES),
            *under(configs.prefix(names, "text_model."), "text_encoder/", TEXT_RULES),
            Rule("visual_projection.weight", "image_projection/kernel", LINEAR),
            Rule("text_projection.weight", "text_projection/kernel", LINEAR),
            Rule("logit_scale", "logit_scale"),
            *rows.dense("classifier", "head"),
        ),
        unused=(rows.POSITION_IDS,),
    )


def recognize(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The config of OpenAI's own file (a TorchScript archive or its state dict), from its shapes.

    Raises:
      MmflaxError: the image encoder is a ResNet, or a number of the model is not in the file.
    """
    words = "token_embedding.weight"
    if any(name.startswith("visual.layer1.") for name in shapes) and words in shapes:
        raise MmflaxError(
            "the checkpoint is a CLIP whose image encoder is a ResNet (it has visual.layer1), and "
            "only those with a Vision Transformer are read, such as ViT-B/32."
        )
    needed = ("visual.conv1.weight", "visual.positional_embedding", "visual.class_embedding")
    if not {*needed, "text_projection", "ln_final.weight", words} <= set(shapes):
        return None
    if not set(ORIGINAL_NUMBERS) <= set(shapes):
        raise MmflaxError(
            "the checkpoint is a CLIP in OpenAI's layout without the entries "
            f"{', '.join(ORIGINAL_NUMBERS)} of OpenAI's own files, so whether its activation is "
            "gelu or quick_gelu is unknown; put its open_clip_config.json, or the config.json of "
            "transformers, beside it."
        )
    width, _, patch, _ = shapes["visual.conv1.weight"]
    positions = shapes["visual.positional_embedding"][0] - 1
    grid = math.isqrt(positions)
    if grid**2 != positions:
        raise MmflaxError(
            f"the checkpoint is a CLIP with {positions} positions of patches, which form no "
            "square; put the model's config.json beside it."
        )
    text, projection = shapes["text_projection"]
    return dict(
        model_type="clip",
        projection_dim=projection,
        vision_config=_tower(shapes, "visual.", width)
        | dict(image_size=grid * patch, patch_size=patch, projection_dim=projection),
        text_config=_tower(shapes, "", text)
        | dict(
            vocab_size=shapes[words][0],
            max_position_embeddings=shapes["positional_embedding"][0],
            eos_token_id=2,
            projection_dim=projection,
        ),
    )


def preprocessing(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `preprocessor_config.json` of a file that `recognize` knows, as OpenAI's code has it."""
    size = config["vision_config"]["image_size"]
    return dict(
        image_processor_type="CLIPImageProcessor",
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )


def _tower(shapes: Mapping[str, Shape], prefix: str, width: int) -> dict[str, Any]:
    """The config of the transformer of one side of OpenAI's."""
    blocks = f"{prefix}transformer.resblocks."
    return dict(
        hidden_size=width,
        intermediate_size=shapes[f"{blocks}0.mlp.c_fc.weight"][0],
        num_hidden_layers=configs.count(shapes, re.escape(blocks) + r"(\d+)\."),
        num_attention_heads=configs.heads_of(width, "OpenAI's CLIP"),
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
    )
