"""Names of METER's checkpoints, as its own repository (zdou0830/METER) saves them.

A `config.json` beside the weights holds `"model_type": "meter"` and what the checkpoint's
`hyper_parameters` differ in from the repository's defaults. A `text_config` in transformers' words
may stand there too, for a text encoder that is neither bert-base nor one of RoBERTa's. Without a
config sizes are read from the shapes (`recognize`).
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    COUNT,
    RATE,
    SIZE,
    WIDTH,
    Key,
    Keys,
    Kind,
)
from mmflax.pretrained.rules import Rule, Shape, Table, under

MODEL_TYPES = ("meter",)

NAME = Kind("the name of a tokenizer", lambda value: isinstance(value, str))
# What a text_config may say otherwise than the tokenizer's name and the sizes do.
TEXT_CONFIG = Keys(
    used={name: Key(key.kind, None) for name, key in configs.BERT_USED.items()}
    | dict(pad_token_id=Key(COUNT, None)),
    fixed=configs.BERT_FIXED,
    harmless=configs.BERT_HARMLESS,
)
# With the defaults of meter/config.py.
KEYS = {
    "meter": Keys(
        used=dict(
            image_size=Key(SIZE, 224),
            patch_size=Key(SIZE, 32),
            tokenizer=Key(NAME, "bert-base-uncased"),
            vocab_size=Key(SIZE, 30522),
            input_image_embed_size=Key(WIDTH, 768),
            input_text_embed_size=Key(SIZE, 768),
            hidden_size=Key(SIZE, 768),
            num_heads=Key(SIZE, 12),
            mlp_ratio=Key(SIZE, 4),
            drop_rate=Key(RATE, 0.1),
            vqav2_label_size=Key(SIZE, 3129),
            num_top_layer=Key(SIZE, None),
        ),
        fixed=dict(image_only=(False,), layer_norm_eps=(1e-12,)),
        # Of the data, the training and the machine; how deep the encoders are is seen in the file.
        harmless=(
            "batch_size", "data_root", "datasets", "decay_power", "draw_false_image",
            "draw_false_text", "end_lr", "exp_name", "fast_dev_run", "get_recall_metric",
            "learning_rate", "load_path", "log_dir", "loss_names", "lr_mult_cross_modal",
            "lr_mult_head", "max_epoch", "max_steps", "max_text_len", "mlm_prob", "num_gpus",
            "num_layers", "num_nodes", "num_workers", "optim_type", "per_gpu_batchsize",
            "precision", "resolution_before", "resume_from", "seed", "test_only",
            "train_transform_keys", "val_check_interval", "val_transform_keys", "vit",
            "warmup_steps", "weight_decay", "whole_word_masking",
        ),
        parts=dict(text_config=TEXT_CONFIG),
        divisible=("hidden_size", "num_heads"),
    )
}  # fmt: skip
# The classifiers, and how many answers each has; VQA's are counted by the config.
CLASSIFIERS = {"vqa_classifier": 0, "nlvr2_classifier": 2, "snli_classifier": 3}


def text_fields(config: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Keywords of the text encoder, which is whole: BERT's or RoBERTa's by the tokenizer's name."""
    named = "roberta" in config["tokenizer"]
    width = config["input_text_embed_size"]
    published = dict(
        vocab_size=config["vocab_size"],
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
        max_position_embeddings=514 if named else 512,
        type_vocab_size=1 if named else 2,
        layer_norm_eps=1e-5 if named else 1e-12,
    )
    make = configs.roberta_fields if named else configs.bert_fields
    given = {key: value for key, value in config["text_config"].items() if value is not None}
    config = published | given
    if config["num_attention_heads"] == 0 or config["hidden_size"] % config["num_attention_heads"]:
        raise MmflaxError(
            f"the config's text encoder is {config['hidden_size']} wide with "
            f"{config['num_attention_heads']} heads, which do not divide it; put "
            "num_attention_heads into its text_config."
        )
    return make(config)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    image_depth = configs.count(names, r"vit_model\.visual\.transformer\.resblocks\.(\d+)\.")
    if not image_depth:
        raise MmflaxError(
            "the checkpoint has no vit_model.visual.transformer, METER's CLIP image encoder; its "
            "models with a Swin Transformer are not read."
        )
    top = configs.count(names, r"cross_modal_text_layers\.(\d+)\.")
    if config["num_top_layer"] not in (None, top):
        raise MmflaxError(
            f"the config has num_top_layer {config['num_top_layer']}; expected {top}, the layers "
            "of each side of the fusion that the file has."
        )
    head = classifier_of(names)
    pair = head == "nlvr2_classifier"
    return dict(
        name="meter",
        image_encoder=dict(
            image_size=config["image_size"],
            patch_size=config["patch_size"],
            width=config["input_image_embed_size"],
            depth=image_depth,
            num_heads=config["input_image_embed_size"] // 64,
            any_size=True,
        ),
        text_encoder=text_fields(
            config, configs.count(names, r"text_transformer\.encoder\.layer\.(\d+)\.")
        ),
        fusion=dict(
            width=config["hidden_size"],
            depth=top,
            num_heads=config["num_heads"],
            mlp_dim=config["hidden_size"] * config["mlp_ratio"],
            num_types=3 if pair else 2,
            dropout_rate=config["drop_rate"],
            attention_dropout_rate=config["drop_rate"],
        ),
        word_head="mlm_score.bias" in names,
        matching="itm_score.fc.weight" in names,
        ranking="rank_output.weight" in names,
        answers=(CLASSIFIERS[head] or config["vqav2_label_size"]) if head else 0,
        num_images=2 if pair else 1,
    )


def classifier_of(names: Collection[str]) -> str:
    """The classifier that a file has, or an empty name."""
    heads = [name for name in CLASSIFIERS if f"{name}.0.weight" in names]
    if len(heads) > 1:
        raise MmflaxError(f"the checkpoint has {' and '.join(heads)}; expected one classifier.")
    return heads[0] if heads else ""


def stream(name: str) -> rows.Rows:
    """One side of the fusion, "text" or "image"."""
    theirs = f"cross_modal_{name}"
    return (
        *rows.dense(f"{theirs}_transform", f"fusion/{name}_projection"),
        *rows.cross_layer(f"{theirs}_layers.{{i}}", f"fusion/encoder/layers_{{i}}/{name}/"),
        *rows.dense(f"{theirs}_pooler.dense", f"fusion/{name}_pooler/dense"),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a METER checkpoint."""
    head = classifier_of(names) or "vqa_classifier"
    return Table(
        rules=(
            *under("vit_model.visual.", "image_encoder/", rows.ORIGINAL_CLIP_VISION),
            *under("text_transformer.", "text_encoder/", rows.BERT),
            Rule("token_type_embeddings.weight", "fusion/type_embedding/embedding"),
            *stream("text"),
            *stream("image"),
            *rows.word_head("mlm_score.transform", "mlm_score.decoder.weight", "mlm_score.bias"),
            *rows.dense("itm_score.fc", "matching_head"),
            *rows.dense("rank_output", "ranking_head"),
            *rows.classifier(head, "head", "0 1 3"),
        ),
        unused=(
            # What is left of CLIP's text encoder, and BERT's pooler: no forward pass reads them.
            r"^vit_model\.(positional_embedding$|token_embedding\.|ln_final\.)",
            r"^text_transformer\.pooler\.",
            rows.POSITION_IDS,
        ),
    )


def recognize(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The config of a file without one, if it is METER's with CLIP's image encoder.

    Sizes are read from the shapes. What shapes do not show is as published: heads 64 wide, and
    dropout the repository's default. A table of one token type is RoBERTa's.
    """
    visual, words = "vit_model.visual.", "text_transformer."
    conv = f"{visual}conv1.weight"
    if conv not in shapes or "cross_modal_text_transform.weight" not in shapes:
        return None
    width, text_width = shapes["cross_modal_text_transform.weight"]
    image_width, _, patch, _ = shapes[conv]
    patches = shapes[f"{visual}positional_embedding"][0] - 1
    side = math.isqrt(patches)
    if side * side != patches:
        raise MmflaxError(
            f"the checkpoint is METER's, with {patches} positions of patches, which form no "
            "square, so its image_size is unknown; put a config.json beside it."
        )
    text = configs.bert_config(shapes, words, "METER")
    roberta = text["type_vocab_size"] == 1
    config: dict[str, Any] = dict(
        model_type="meter",
        tokenizer="roberta-base" if roberta else "bert-base-uncased",
        vocab_size=text["vocab_size"],
        image_size=side * patch,
        patch_size=patch,
        hidden_size=width,
        num_heads=configs.heads_of(width, "METER"),
        mlp_ratio=shapes["cross_modal_text_layers.0.intermediate.dense.weight"][0] // width,
        input_image_embed_size=configs.heads_of(image_width, "METER") * 64,
        input_text_embed_size=text_width,
        text_config=text | dict(layer_norm_eps=1e-5 if roberta else 1e-12),
    )
    if "vqa_classifier.3.weight" in shapes:
        config["vqav2_label_size"] = shapes["vqa_classifier.3.weight"][0]
    return config
