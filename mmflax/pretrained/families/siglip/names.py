"""Names of SigLIP's checkpoints (transformers' SiglipModel and its parts), also SigLIP 2's."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.clip.names import (
    TEXT_RULES,
    TOWER,
    VISION_RULES,
    one_side,
    text_fields,
    vision_fields,
)
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    EPSILON,
    FLAG,
    SIDE,
    SIDES,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import FIRST, Rule, Table, under

MODEL_TYPES = ("siglip", "siglip_text_model", "siglip_vision_model")

# The configs of both sides, with the defaults of transformers' classes.
BOTH = TOWER | dict(
    hidden_act=Key(ACTIVATION, "gelu_pytorch_tanh"), layer_norm_eps=Key(EPSILON, 1e-6)
)
VISION = Keys(
    used=BOTH
    | dict(image_size=Key(SIDES, 224), patch_size=Key(SIDE, 16), vision_use_head=Key(FLAG, True)),
    fixed=dict(num_channels=(3,)),
    # Of models that read the image's tokens, for which transformers' SigLIP has no use.
    harmless=("num_image_tokens", "num_positions", "projection_dim", "projector_hidden_act"),
)
TEXT = Keys(
    used=BOTH
    | dict(
        vocab_size=Key(SIZE, 32000),
        max_position_embeddings=Key(SIZE, 64),
        projection_size=Key(SIZE, None),
    )
)
KEYS = {
    "siglip": Keys(parts=dict(text_config=TEXT, vision_config=VISION)),
    "siglip_text_model": TEXT,
    "siglip_vision_model": VISION,
}

POOLER = (
    Rule("probe", "probe"),
    *rows.joined_attention("attention", "attention"),
    *rows.norm("layernorm", "mlp_norm"),
    *rows.dense("mlp.fc1", "mlp/fc1"),
    *rows.dense("mlp.fc2", "mlp/fc2"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(name="siglip")
    if configs.has(names, "patch_embedding.weight"):
        fields["image_encoder"] = vision_fields(
            one_side(config, "vision"), cls_token=False, pool="map"
        )
        fields["pooler"] = configs.has(names, "head.probe")
    if configs.has(names, "token_embedding.weight"):
        text = one_side(config, "text")
        fields["text_encoder"] = text_fields(text)
        fields["projection"] = text["projection_size"] or text["hidden_size"]
    if "text_encoder" in fields and not fields.get("pooler", True):
        raise MmflaxError(
            "the file has both sides of a SigLIP and no vision_model.head.*, without which an "
            "image has no vector to compare; save the whole SiglipModel, or one side alone."
        )
    return fields | dict(labels=configs.classifier_labels(config, names))


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a SigLIP checkpoint."""
    vision, text = configs.prefix(names, "vision_model."), configs.prefix(names, "text_model.")
    return Table(
        rules=(
            *under(vision, "image_encoder/", VISION_RULES),
            *under(f"{vision}head.", "image_head/", POOLER),
            *under(text, "text_encoder/", TEXT_RULES),
            *rows.dense(f"{text}head", "text_projection"),
            Rule("logit_scale", "logit_scale", FIRST),
            Rule("logit_bias", "logit_bias", FIRST),
            *rows.dense("classifier", "head"),
        ),
        unused=(rows.POSITION_IDS,),
    )
