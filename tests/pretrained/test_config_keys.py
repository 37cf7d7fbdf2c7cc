"""Every key of an original's config.json is known, completed or refused in one sentence."""

import json
import pathlib

import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.pretrained import families
from mmflax.pretrained.families import config_keys
from mmflax.pretrained.inspect import shapes_of

ONE_SENTENCE = {
    # changed key -> value, and what the sentence says
    "unknown key": ("bert", {"window_size": 5}, "window_size is 5, a key that .* may_ignore_keys"),
    "misspelt key": ("bert", {"hiden_size": 5}, "did you mean 'hidden_size'"),
    "other positions": (
        "bert",
        {"position_embedding_type": "relative_key"},
        '"relative_key", and the family bert builds "absolute" only',
    ),
    "cross-attention": ("bert", {"add_cross_attention": True}, "builds false or null only"),
    "pruned": ("bert", {"pruned_heads": {"1": [0]}}, "pruned_heads is"),
    "null": ("bert", {"hidden_act": None}, "hidden_act is null; expected one of gelu"),
    "text": ("bert", {"hidden_size": "768"}, 'hidden_size is "768"; expected a whole number'),
    "negative": ("bert", {"num_hidden_layers": -1}, "num_hidden_layers is -1; expected"),
    "zero": ("bert", {"num_attention_heads": 0}, "num_attention_heads is 0; expected"),
    "nested": ("bert", {"vocab_size": [[3]]}, "vocab_size is"),
    "true": ("bert", {"hidden_size": True}, "hidden_size is true; expected"),
    "heads": ("bert", {"num_attention_heads": 7}, "hidden_size is 768, which .*heads 7"),
    "labels": ("bert", {"id2label": ["a"]}, "id2label is"),
    "part": ("clip", {"text_config": 3}, "text_config is 3; expected an object"),
    "in a part": ("clip", {"vision_config": {"depth": 3}}, r"vision_config\.depth is 3"),
    "heads of a part": ("clip", {"text_config": {"num_attention_heads": 7}}, "text_config.hidden"),
    "stages": ("swin", {"depths": [2, 2]}, r"different lengths \(depths 2, num_heads 4\)"),
    "no pad token": ("roberta", {"pad_token_id": None}, "pad_token_id is null; expected"),
    "channels": ("clip", {"vision_config": {"num_channels": 1}}, "builds 3 only"),
}


@pytest.mark.parametrize("case", ONE_SENTENCE)
def test_what_a_family_cannot_build_is_one_sentence(case):
    family, changes, sentence = ONE_SENTENCE[case]
    with pytest.raises(MmflaxError, match=rf"^config\.json: [^\n]*{sentence}"):
        families.check_config(family, {"model_type": family, **changes}, "config.json")


def test_null_parts_and_older_spellings_are_read_as_the_original_reads_them():
    assert families.completed("clip", {"text_config": None})["text_config"]["hidden_size"] == 512
    both = {"text_config": {"hidden_size": 64, "x": 1}, "text_config_dict": {"vocab_size": 7}}
    families.check_config("clip", both, "config.json")  # the older one stands for the whole part
    text = families.completed("clip", both)["text_config"]
    assert (text["hidden_size"], text["vocab_size"]) == (512, 7)


def test_keys_that_may_be_ignored_are_read_as_absent():
    config = {"a": 1, "text_config": {"b": 2, "c": 3}}
    assert config_keys.without(config, ["a", "text_config.b"]) == {"text_config": {"c": 3}}
    with pytest.raises(MmflaxError, match="may_ignore_keys has 'z', which"):
        config_keys.without(config, ["z"])


# What files on the hub hold beside transformers' own keys, and no class of transformers reads.
PUBLISHED = {
    "bert": {"emb_size": 312, "cell": {}, "structure": [], "pre_trained": "", "training": ""},
    "bridgetower": {"num_layers": 6, "vit_embed_dim": 512, "vit_patch_size": 16, "vit_width": 768},
    "siglip_vision_model": {"num_image_tokens": 256, "projection_dim": 2048},
}


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_keys_of_public_files_that_nothing_reads(model_type):
    config = {"model_type": model_type, **PUBLISHED[model_type]}
    families.check_config(families.known_types()[model_type], config, "config.json")


@pytest.mark.parametrize("family", ["align", "siglip"])
def test_two_sides_of_other_sizes_are_one_sentence(family):
    names = ["embeddings.convolution.weight", "patch_embedding.weight"]
    names += ["embeddings.word_embeddings.weight", "token_embedding.weight", "head.probe"]
    names += ["text_projection.weight"]
    small = {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}
    text = {**small, "projection_size": 4} if family == "siglip" else small
    vision = {"image_size": 32, **(small if family == "siglip" else {"width_coefficient": 0.1})}
    config = {"text_config": text, "vision_config": vision, "projection_dim": 4}
    fields = families.fields_of(family, config, names)
    model = registry.build(families.__name__, "model", fields)
    with pytest.raises(MmflaxError, match="and a text 4, which cannot be compared"):
        shapes_of(model)


def test_a_pair_without_the_head_of_its_images_is_one_sentence():
    names = ["vision_model.embeddings.patch_embedding.weight"]
    names += ["text_model.embeddings.token_embedding.weight"]
    with pytest.raises(MmflaxError, match=r"no vision_model\.head"):
        families.fields_of("siglip", {}, names)
    assert not families.fields_of("siglip", {}, names[:1])["pooler"]


def test_a_config_without_a_model_type_says_how_to_name_one():
    with pytest.raises(MmflaxError, match="x has no model_type, .* family="):
        families.family_of(None, "x")


RECORDED = sorted((pathlib.Path(__file__).parents[1] / "golden" / "config_keys").glob("*.json"))


def recorded():
    """(release, class) -> what it holds: `full` and `smallest`."""
    return {
        (path.stem, name): config
        for path in RECORDED
        for name, config in json.loads(path.read_text()).items()
    }


@pytest.mark.parametrize("which", recorded(), ids="-".join)
def test_every_key_that_a_release_writes_is_known_and_its_default_is_the_same(which):
    full, smallest = recorded()[which]["full"], recorded()[which]["smallest"]
    family = families.known_types()[full["model_type"].replace("-", "_")]
    for config in (full, smallest, {"model_type": full["model_type"]}):
        families.check_config(family, config, "config.json")
    keys = families.keys_of(family, full)
    found = [families.completed(family, c) for c in (smallest, {"model_type": full["model_type"]})]
    for config in found:
        assert same(read(config, keys), read(families.completed(family, full), keys))


def read(config, keys):
    """Of a completed config what is used, also in its parts."""
    own = {name: config[name] for name in keys.used}
    return own | {name: read(config[name], part) for name, part in keys.parts.items()}


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    a, b = (tuple(x) if isinstance(x, list) else x for x in (a, b))
    return a == b or None in (a, b)  # None stands for the size of another key
