"""Names of BLIP's checkpoints (transformers' BlipModel and its variants).

BlipModel, BlipForImageTextRetrieval, BlipForQuestionAnswering and BlipForConditionalGeneration are
distinguished by their tensors' names.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    COUNT,
    EPSILON,
    FLAG,
    RATE,
    SIDE,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import FIRST, LINEAR, Rule, Table, under

MODEL_TYPES = ("blip",)

# The configs of both sides, with the defaults of transformers' classes.
TEXT_CONFIG = Keys(
    used=configs.BERT_USED
    | dict(
        vocab_size=Key(SIZE, 30524),
        num_attention_heads=Key(SIZE, 8),
        hidden_dropout_prob=Key(RATE, 0.0),
        attention_probs_dropout_prob=Key(RATE, 0.0),
        bos_token_id=Key(COUNT, 30522),
        sep_token_id=Key(COUNT, 102),
        pad_token_id=Key(COUNT, 0),
        tie_word_embeddings=Key(FLAG, True),
    ),
    # A layer has cross-attention if its config says "decoder"; each model says by itself whether
    # words see those behind them.
    fixed=configs.BERT_FIXED | dict(is_decoder=(True,)),
    # The width of what is read is the image encoder's, whatever stands here.
    harmless=(
        "add_cross_attention", "encoder_hidden_size", "label_smoothing", "projection_dim",
        "type_vocab_size",
    ),
)  # fmt: skip
IMAGE_CONFIG = Keys(
    used=dict(
        hidden_size=Key(SIZE, 768),
        intermediate_size=Key(SIZE, 3072),
        num_hidden_layers=Key(SIZE, 12),
        num_attention_heads=Key(SIZE, 12),
        image_size=Key(SIDE, 384),
        patch_size=Key(SIDE, 16),
        hidden_act=Key(ACTIVATION, "gelu"),
        layer_norm_eps=Key(EPSILON, 1e-5),
        attention_dropout=Key(RATE, 0.0),
    ),
    harmless=("dropout", "num_channels", "projection_dim"),
)
KEYS = {
    "blip": Keys(
        used=dict(projection_dim=Key(SIZE, 512), image_text_hidden_size=Key(SIZE, 256)),
        harmless=(
            "label_smoothing", "logit_scale_init_value", "text_config_dict", "vision_config_dict",
        ),
        parts=dict(text_config=TEXT_CONFIG, vision_config=IMAGE_CONFIG),
    )
}  # fmt: skip

LAYER, OURS = "encoder.layers.{i}", "encoder/layers_{i}/"
IMAGE = (
    Rule("embeddings.class_embedding", "cls"),
    Rule("embeddings.position_embedding", "position_embedding", FIRST),
    *rows.conv("embeddings.patch_embedding", "patch_embedding"),
    *rows.joined_attention(f"{LAYER}.self_attn", f"{OURS}attention", "qkv.", "projection"),
    *rows.clip_rest(LAYER, OURS),
    *rows.norm("post_layernorm", "norm"),
)
# A text model reads the image in every layer.
TEXT = (
    *rows.BERT,
    *rows.bert_attention("encoder.layer.{i}.crossattention", f"{OURS}cross_attention"),
)


def decoder(table_rows: rows.Rows) -> rows.Rows:
    """The same rows where our layers lie directly in the decoder."""
    return tuple(
        rule._replace(ours=tuple(path.removeprefix("encoder/") for path in rule.paths))
        for rule in table_rows
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    image, text = config["vision_config"], config["text_config"]
    layers = dict(
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        mlp_dim=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        max_length=text["max_position_embeddings"],
        activation=configs.activation(text["hidden_act"]),
        epsilon=text["layer_norm_eps"],
        dropout_rate=text["hidden_dropout_prob"],
        attention_dropout_rate=text["attention_probs_dropout_prob"],
    )
    fields: dict[str, Any] = dict(
        name="blip",
        image_encoder=dict(
            image_size=configs.side(image["image_size"]),
            patch_size=configs.side(image["patch_size"]),
            width=image["hidden_size"],
            depth=image["num_hidden_layers"],
            num_heads=image["num_attention_heads"],
            mlp_dim=image["intermediate_size"],
            activation=configs.activation(image["hidden_act"]),
            epsilon=image["layer_norm_eps"],
            attention_dropout_rate=image["attention_dropout"],
            any_size=True,
        ),
    )
    reads = any(name.startswith(READERS) for name in names)
    if reads:
        fields["text_encoder"] = layers | dict(num_token_types=0, cross_attention=True)
    if any(name.startswith("text_decoder.") for name in names):
        fields |= dict(
            task="answer" if reads else "caption",
            decoder=layers
            | dict(norm_style="post", word_head=True, tie="own" if tied(config, names) else "none"),
            # As long as transformers writes by default.
            limits=dict(
                begin=text["bos_token_id"],
                end=text["sep_token_id"],
                pad=text["pad_token_id"],
                length=min(20, text["max_position_embeddings"]),
            ),
        )
    elif "itm_head.weight" in names:
        fields |= dict(task="matching", projection=config["image_text_hidden_size"])
    else:
        fields |= dict(task="pair", projection=config["projection_dim"])
    return fields


# Where the text model that reads lies: BlipModel's, and the others'.
HEAD = "text_decoder.cls.predictions"
READERS = ("text_model.", "text_encoder.")


def tied(config: Mapping[str, Any], names: Collection[str]) -> bool:
    """Whether the decoder scores words by its word table."""
    wanted = config["text_config"].get("tie_word_embeddings", True)
    return bool(wanted) or f"{HEAD}.decoder.weight" not in names


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BLIP checkpoint."""
    pair = "visual_projection.weight" in names
    if pair:
        projections: rows.Rows = (
            Rule("visual_projection.weight", "image_projection/kernel", LINEAR),
            Rule("text_projection.weight", "text_projection/kernel", LINEAR),
        )
    else:
        projections = (
            *rows.dense("vision_proj", "image_projection"),
            *rows.dense("text_proj", "text_projection"),
        )
    one, bias, other = tied(config, names), f"{HEAD}.bias", f"{HEAD}.decoder.bias"
    if not one:  # then transformers reads the layer's own
        bias, other = other, bias
    words = (f"{HEAD}.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight")
    return Table(
        rules=(
            *under("vision_model.", "image_encoder/", IMAGE),
            *under(READERS[not pair], "text_encoder/", TEXT),
            *under("text_decoder.bert.", "decoder/", decoder(TEXT)),
            *rows.word_head(f"{HEAD}.transform", f"{HEAD}.decoder.weight", bias, "decoder/output"),
            *projections,
            Rule("logit_scale", "logit_scale"),
            *rows.dense("itm_head", "matching_head"),
        ),
        tied=(words, (other, bias)) if one else (),
        unused=(
            rows.POSITION_IDS,
            # Without tying no forward pass reads it.
            *(() if one else (rf"^{re.escape(other)}$",)),
        ),
    )
