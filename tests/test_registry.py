import sys
import types

import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.models.encoders.vit import ViT

ENCODERS = "mmflax.models.encoders"
VIT = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2, "patch_size": 8}


def test_names_are_the_modules_with_a_build():
    assert registry.names(ENCODERS) == [
        "bert", "clip_text", "clip_vision", "efficientnet", "patches", "regions", "resnet",
        "siglip_text", "swin", "vgg", "vit",
    ]  # fmt: skip
    assert registry.names("mmflax.data.datasets") == [
        "coco_captions", "flickr30k", "folder", "nlvr", "nlvr2", "shapes", "snli_ve", "vqa_v2",
    ]  # fmt: skip


def test_builds_with_what_the_config_and_the_experiment_say():
    encoder = registry.build(ENCODERS, "model.image_encoder", VIT, image_size=32, unused=1)
    assert isinstance(encoder, ViT)
    assert (encoder.width, encoder.image_size) == (32, 32)


def test_a_dotted_path_reaches_a_module_outside():
    module = types.ModuleType("my_encoders")
    module.build = lambda *, width: ("mine", width)
    sys.modules["my_encoders.small"] = module
    sys.modules["my_encoders"] = types.ModuleType("my_encoders")
    try:
        assert registry.build(ENCODERS, "model", {"name": "my_encoders.small", "width": 3}) == (
            "mine",
            3,
        )
    finally:
        del sys.modules["my_encoders.small"], sys.modules["my_encoders"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**VIT, "name": "vitt"}, "did you mean 'vit'"),
        ({**VIT, "name": "no.such.module"}, "does not exist"),
        ({**VIT, "name": None}, "name is missing"),
        ({**VIT, "num_head": 2}, "did you mean 'num_heads'"),
        ({**VIT, "dropout_rates": 0.1}, "did you mean 'dropout_rate'"),
        ({**VIT, "width": "wide"}, "model.image_encoder.width is 'wide'"),
        ({**VIT, "scan_layers": 1}, "scan_layers is 1 (int); expected True or False"),
        ({**VIT, "image_size": 64}, "decided by the rest of the config"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(MmflaxError, match=message.replace("(", r"\(").replace(")", r"\)")):
        registry.build(ENCODERS, "model.image_encoder", fields, image_size=32)


def test_a_missing_keyword_is_named():
    with pytest.raises(MmflaxError, match="needs .*num_heads"):
        registry.build(
            "mmflax.models.fusion", "model.fusion", {"name": "co_attention", "width": 8, "depth": 1}
        )
