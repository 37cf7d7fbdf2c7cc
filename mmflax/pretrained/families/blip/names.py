"""Names of BLIP's checkpoints (transformers' BlipModel and its kin).

BlipModel, BlipForImageTextRetrieval, BlipForQuestionAnswering and BlipForConditionalGeneration are
told apart by the names they have.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import (
    activation,
    bert_attention,
    bert_layer,
    dense,
    norm,
    word_head,
)
from mmflax.pretrained.rules import (
    CONV,
    FIRST,
    FLAT,
    LINEAR,
    LINEAR_OUT,
    Rule,
    Table,
    split,
    under,
)

MODEL_TYPES = ("blip",)

QKV = tuple(f"encoder/layers_{{i}}/attention/{part}" for part in ("query", "key", "value"))
IMAGE = (
    Rule("embeddings.class_embedding", "cls"),
    Rule("embeddings.position_embedding", "position_embedding", FIRST),
    Rule("embeddings.patch_embedding.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.patch_embedding.bias", "patch_embedding/bias"),
    Rule(
        "encoder.layers.{i}.self_attn.qkv.weight",
        tuple(f"{part}/kernel" for part in QKV),
        split(LINEAR),
    ),
    Rule(
        "encoder.layers.{i}.self_attn.qkv.bias", tuple(f"{part}/bias" for part in QKV), split(FLAT)
    ),
    Rule(
        "encoder.layers.{i}.self_attn.projection.weight",
        "encoder/layers_{i}/attention/out/kernel",
        LINEAR_OUT,
    ),
    Rule("encoder.layers.{i}.self_attn.projection.bias", "encoder/layers_{i}/attention/out/bias"),
    *norm("encoder.layers.{i}.layer_norm1", "encoder/layers_{i}/attention_norm"),
    *norm("encoder.layers.{i}.layer_norm2", "encoder/layers_{i}/mlp_norm"),
    *dense("encoder.layers.{i}.mlp.fc1", "encoder/layers_{i}/mlp/fc1"),
    *dense("encoder.layers.{i}.mlp.fc2", "encoder/layers_{i}/mlp/fc2"),
    *norm("post_layernorm", "norm"),
)


def text_rules(layers: str) -> tuple[Rule, ...]:
    """A text model; our layers lie at `layers`, which ends in "layers_{i}/"."""
    return (
        Rule("embeddings.word_embeddings.weight", "word_embedding/embedding"),
        Rule("embeddings.position_embeddings.weight", "position_embedding/embedding"),
        *norm("embeddings.LayerNorm", "embedding_norm"),
        *bert_layer("encoder.layer.{i}", layers),
        *bert_attention("encoder.layer.{i}.crossattention", f"{layers}cross_attention"),
        *dense("pooler.dense", "pooler/dense"),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    image, text = config["vision_config"], config["text_config"]
    layers = dict(
        width=text["hidden_size"],
        depth=text["num_hidden_layers"],
        num_heads=text["num_attention_heads"],
        mlp_dim=text["intermediate_size"],
        vocab_size=text["vocab_size"],
        max_length=text["max_position_embeddings"],
        activation=activation(text["hidden_act"]),
        epsilon=text["layer_norm_eps"],
        dropout_rate=text["hidden_dropout_prob"],
        attention_dropout_rate=text["attention_probs_dropout_prob"],
    )
    found: dict[str, Any] = dict(
        name="blip",
        image_encoder=dict(
            image_size=image["image_size"],
            patch_size=image["patch_size"],
            width=image["hidden_size"],
            depth=image["num_hidden_layers"],
            num_heads=image["num_attention_heads"],
            mlp_dim=image["intermediate_size"],
            activation=activation(image["hidden_act"]),
            epsilon=image["layer_norm_eps"],
            attention_dropout_rate=image["attention_dropout"],
            any_size=True,
        ),
    )
    reads = any(name.startswith(READERS) for name in names)
    if reads:
        found["text_encoder"] = layers | dict(num_token_types=0, cross_attention=True)
    if any(name.startswith("text_decoder.") for name in names):
        found |= dict(
            task="answer" if reads else "caption",
            decoder=layers
            | dict(norm_style="post", word_head=True, tie="own" if tied(config, names) else "none"),
            # As long as transformers writes when it is not told.
            limits=dict(
                begin=text["bos_token_id"],
                end=text["sep_token_id"],
                pad=text["pad_token_id"],
                length=min(20, text["max_position_embeddings"]),
            ),
        )
    elif "itm_head.weight" in names:
        found |= dict(task="matching", projection=config["image_text_hidden_size"])
    else:
        found |= dict(task="pair", projection=config["projection_dim"])
    return found


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
    projections = (
        (
            Rule("visual_projection.weight", "image_projection/kernel", LINEAR),
            Rule("text_projection.weight", "text_projection/kernel", LINEAR),
        )
        if pair
        else (
            *dense("vision_proj", "image_projection"),
            *dense("text_proj", "text_projection"),
        )
    )
    one, bias, other = tied(config, names), f"{HEAD}.bias", f"{HEAD}.decoder.bias"
    if not one:  # then transformers reads the layer's own
        bias, other = other, bias
    words = (f"{HEAD}.decoder.weight", "text_decoder.bert.embeddings.word_embeddings.weight")
    return Table(
        rules=(
            *under("vision_model.", "image_encoder/", IMAGE),
            *under(READERS[not pair], "text_encoder/", text_rules("encoder/layers_{i}/")),
            *under("text_decoder.bert.", "decoder/", text_rules("layers_{i}/")),
            *word_head(f"{HEAD}.transform", f"{HEAD}.decoder.weight", bias, "decoder/output"),
            *projections,
            Rule("logit_scale", "logit_scale"),
            *dense("itm_head", "matching_head"),
        ),
        tied=(words, (other, bias)) if one else (),
        unused=(
            # Constants, saved as buffers by older releases.
            r"embeddings\.position_ids$",
            # Without tying no forward pass reads it.
            *(() if one else (rf"^{re.escape(other)}$",)),
        ),
    )
