"""Families of image and text: keys of an original's config.json, and the least that one holds."""

import json

import pytest

from mmflax.errors import MmflaxError
from mmflax.pretrained import families
from mmflax.pretrained.tensors import open_tensors
from tests.pretrained import cases

# A recorded checkpoint of each family whose config.json is changed.
RECORDED = {
    "blip": "blip-caption",
    "bridgetower": "bridgetower-plain",
    "lxmert": "lxmert-pretraining",
    "meter": "meter-vqa",
    "uniter": "uniter-answers",
    "vilbert": "vilbert-pretraining",
    "vilt": "vilt-questions",
    "visual_bert": "visual_bert-answers",
}


def loaded(family):
    directory = cases.GOLDEN / RECORDED[family]
    return json.loads((directory / "config.json").read_text()), sorted(open_tensors(directory))


def changed(config, changes):
    """`changes`: "part.key" -> value; `...` takes the key away."""
    config = json.loads(json.dumps(config))
    for path, value in changes.items():
        *parts, key = path.split(".")
        node = config
        for part in parts:
            node = node[part]
        if value is ...:
            del node[key]
        else:
            node[key] = value
    return config


REFUSED = {
    "blip text encoder": ("blip", {"text_config.is_decoder": False}, "builds true only"),
    "blip positions": ("blip", {"text_config.position_embedding_type": "relative_key"}, "builds"),
    "blip activation": ("blip", {"vision_config.hidden_act": "mish"}, "expected one of gelu"),
    "blip null": ("blip", {"text_config.hidden_act": None}, "hidden_act is null"),
    "blip unknown": ("blip", {"vision_config.use_rope": True}, "may_ignore_keys"),
    "blip patches": ("blip", {"vision_config.image_size": 2}, "image_size is 2, less than"),
    "bridges shared": ("bridgetower", {"share_link_tower_layers": True}, "builds false only"),
    "another bridge": ("bridgetower", {"link_tower_type": "product"}, "'scaled_add'"),
    "causal": ("bridgetower", {"text_config.is_decoder": True}, "builds false or null only"),
    "no padding": ("bridgetower", {"text_config.pad_token_id": None}, "pad_token_id is null"),
    "heads of 64": ("bridgetower", {"vision_config.hidden_size": 96}, "a multiple of 64"),
    "channels": ("vilt", {"num_channels": 1}, "builds 3 only"),
    "patches drawn": ("vilt", {"max_image_length": 200}, "builds -1 only"),
    "images": ("vilt", {"num_images": 3}, "expected -1, 1 or 2"),
    "boxes": ("lxmert", {"visual_pos_dim": 6}, "builds 4 only"),
    "bypass": ("visual_bert", {"bypass_transformer": True}, "builds false only"),
    "norms": ("uniter", {"layer_norm_eps": 1e-5}, "layer_norm_eps is 1e-05"),
    "types": ("uniter", {"type_vocab_size": 1}, "expected a whole number from 2 on"),
    "pair": ("uniter", {"nlvr2": "other"}, "'triplet'"),
    "dynamic": ("vilbert", {"dynamic_attention": True}, "builds false only"),
    "no co-attention": ("vilbert", {"with_coattention": False}, "builds true only"),
    "roberta": ("vilbert", {"model": "roberta"}, 'builds "bert" only'),
    "image only": ("meter", {"image_only": True}, "builds false only"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_built_is_one_sentence(case):
    family, changes, sentence = REFUSED[case]
    config, _ = loaded(family)
    families.check_config(family, config, "config.json")
    with pytest.raises(MmflaxError, match=rf"^config\.json: [^\n]*{sentence}"):
        families.check_config(family, changed(config, changes), "config.json")


# Keys on which the numbers do not depend, and keys whose default says the same.
SAME = {
    "blip": {
        "label_smoothing": 0.1, "text_config.label_smoothing": 0.1, "text_config.use_cache": False,
        "text_config.encoder_hidden_size": 7, "text_config.is_decoder": ..., "projection_dim": 3,
        "text_config.hidden_act": ..., "text_config.layer_norm_eps": ...,
        "vision_config.hidden_act": ..., "vision_config.layer_norm_eps": ...,
        "text_config.pad_token_id": ..., "vision_config.projection_dim": None,
        "vision_config.num_channels": 3, "text_config_dict": None,
    },
    "bridgetower": {
        "hidden_act": ..., "layer_norm_eps": ..., "link_tower_type": ..., "head_hidden_scale": 2,
        "share_cross_modal_transformer_layers": ..., "share_link_tower_layers": ...,
        "num_attention_heads": ..., "init_layernorm_from_vision_encoder": True,
        "text_config.hidden_act": ..., "text_config.layer_norm_eps": ...,
        "text_config.type_vocab_size": ..., "text_config.pad_token_id": ...,
        "vision_config.layer_norm_eps": ..., "vision_config.share_layernorm": False,
        "vision_config.stop_gradient": True, "vision_config.remove_last_layer": ...,
    },
    "vilt": {
        "hidden_act": ..., "layer_norm_eps": ..., "max_image_length": ..., "num_images": ...,
        "qkv_bias": ..., "modality_type_vocab_size": ..., "num_channels": ...,
        "type_vocab_size": ..., "hidden_dropout_prob": ..., "tie_word_embeddings": False,
    },
    "lxmert": {
        "task_matched": False, "task_mask_lm": False, "visual_loss_normalizer": 1.0,
        "hidden_act": ..., "layer_norm_eps": 0.1, "visual_pos_dim": ..., "type_vocab_size": ...,
        "visual_obj_loss": ..., "num_hidden_layers": ...,
    },
    "visual_bert": {
        "special_visual_initialize": False, "bypass_transformer": ..., "hidden_act": ...,
        "layer_norm_eps": ..., "type_vocab_size": ..., "pad_token_id": 3,
    },
    "uniter": {"hidden_act": ..., "initializer_range": 0.02, "layer_norm_eps": 1e-12},
    "vilbert": {"hidden_act": ..., "v_hidden_act": ..., "fast_mode": True, "objective": 1},
    "meter": {"drop_rate": 0.1, "max_text_len": 50, "vit": "ViT-B/16", "precision": 16},
}  # fmt: skip


@pytest.mark.parametrize("family", SAME)
def test_what_changes_nothing_changes_nothing(family):
    config, names = loaded(family)
    other = changed(config, SAME[family])
    families.check_config(family, other, "config.json")
    assert families.fields_of(family, other, names) == families.fields_of(family, config, names)
    assert families.table_of(family, other, names) == families.table_of(family, config, names)


def test_a_classifier_without_its_class_is_refused():
    config, names = loaded("visual_bert")
    with pytest.raises(MmflaxError, match="no architectures"):
        families.fields_of("visual_bert", changed(config, {"architectures": ...}), names)


def test_what_the_file_shows_is_compared_with_what_the_config_says():
    config, names = loaded("meter")
    with pytest.raises(MmflaxError, match="num_top_layer 9; expected"):
        families.fields_of("meter", {**config, "num_top_layer": 9}, names)
    config, names = loaded("vilbert")
    with pytest.raises(MmflaxError, match="task_specific_tokens true, but the file has no"):
        families.fields_of("vilbert", {**config, "task_specific_tokens": True}, names)
