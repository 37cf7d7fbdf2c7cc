"""Any image encoder fuses with any text encoder by any fusion: shapes, nothing computed."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from mmflax import registry
from mmflax.errors import MmflaxError
from mmflax.models.vision_language import VisionLanguageModel

# Small, and no two of one width.
IMAGES = {
    "vit": dict(image_size=32, patch_size=8, width=16, depth=2, num_heads=2),
    "clip_vision": dict(image_size=32, patch_size=8, width=24, depth=2, num_heads=2),
    "patches": dict(image_size=32, patch_size=8, width=32),
    "swin": dict(
        image_size=32, patch_size=2, width=8, depths=(2, 2), num_heads=(2, 4), window_size=4
    ),
    "resnet": dict(image_size=32, block="bottleneck", depths=(1, 1), widths=(8, 12), stem=4),
    "vgg": dict(image_size=32, widths=((4,), (20,))),
    "efficientnet": dict(image_size=32, width_factor=0.1, depth_factor=0.1),
    "regions": dict(num_regions=5, feature_dim=10, width=36, depth=2, num_heads=2),
}
TEXTS = {
    "bert": dict(vocab_size=30, max_length=8, width=28, depth=2, num_heads=2),
    "clip_text": dict(vocab_size=30, max_length=8, width=44, depth=2, num_heads=2),
    "siglip_text": dict(vocab_size=30, max_length=8, width=52, depth=2, num_heads=2),
}
UNLAYERED = {"vgg", "efficientnet", "patches"}  # without layers of one size: no bridge
ENCODERS, FUSIONS = "mmflax.models.encoders", "mmflax.models.fusion"


def kinds():
    return [name for name in registry.names(FUSIONS) if name != "base"]


def test_every_encoder_is_tried():
    assert {*IMAGES, *TEXTS} == set(registry.names(ENCODERS))


@pytest.mark.parametrize("name", kinds())
def test_every_image_encoder_and_each_text_encoder_in_turn(name):
    fields = {"name": name, "width": 16, "depth": 1, "num_heads": 2}
    taken = registry.keywords_of(FUSIONS, "fusion", name)
    fusion = registry.build(
        FUSIONS, "fusion", {k: v for k, v in fields.items() if k in (*taken, "name")}
    )
    for (image, of_image), (text, of_text) in zip(
        IMAGES.items(), itertools.cycle(TEXTS.items()), strict=False
    ):
        encoder = registry.build(ENCODERS, "image_encoder", {"name": image, **of_image})
        words = registry.build(ENCODERS, "text_encoder", {"name": text, **of_text})
        model = VisionLanguageModel(encoder, words, fusion)
        shape = (2, 5, 14) if image == "regions" else (2, 32, 32, 3)
        inputs = (
            jnp.zeros(shape),
            jnp.ones((2, 6), jnp.int32),
            jnp.ones((2, 6), bool),
            jnp.ones((2, encoder.num_tokens()), bool),
        )

        def run(model=model, inputs=inputs):
            return model.init_with_output(jax.random.key(0), *inputs, train=False)[0]

        if fusion.num_layers_read and image in UNLAYERED:
            with pytest.raises(MmflaxError, match="this fusion reads the last"):
                jax.eval_shape(run)
            continue
        found = jax.eval_shape(run)
        assert found.image_tokens.shape[:2] == found.image_mask.shape == (2, encoder.num_tokens())
        assert found.text_tokens.shape == (2, 6, of_text["width"])
        assert found.image.shape[0] == found.text.shape[0] == found.pooled.shape[0] == 2
