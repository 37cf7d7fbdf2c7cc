"""ViT: transformers' ViTModel and ViTForImageClassification."""

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="ViTModel", base=False, config="ViTConfig", model=(), **changes):
    def make():
        import transformers

        small = dict(
            hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2,
            image_size=12, patch_size=4,
        )  # fmt: skip
        options = getattr(transformers, config)(**({} if base else small) | changes)
        return randomized(getattr(transformers, head)(options, **dict(model)))

    return make


def images(height=12, width=12):
    return lambda rng: {"image": rng.normal(size=(2, height, width, 3)).astype(np.float32)}


def call(module, batch):
    """Off the size that the positions were learned at, they are resampled."""
    size = module.config.image_size
    fits = tuple(batch["image"].shape[1:3]) == ((size, size) if isinstance(size, int) else size)
    return module(
        **torch_batch(batch, pixel_values="image"),
        output_hidden_states=True,
        interpolate_pos_encoding=not fits,
    )


WHOLE = dict(batch=images(), call=call, hidden={"image_encoder/encoder": "hidden_states"})
HEAD = WHOLE | dict(absent=("last_hidden_state",))
CASES = {
    "plain": Case(original(), **WHOLE, golden=True, gradients=True),
    "classifier": Case(
        original("ViTForImageClassification", num_labels=5), **HEAD, golden=True, gradients=True
    ),
    "no pooler": Case(original(model={"add_pooling_layer": False}), **WHOLE),
    "mask token": Case(original(model={"use_mask_token": True}), **WHOLE),
    "pooler of its own": Case(original(pooler_output_size=6, pooler_act="relu"), **WHOLE),
    "no qkv bias": Case(original(qkv_bias=False), **WHOLE),
    "gelu_new": Case(original(hidden_act="gelu_new"), **WHOLE),
    "relu": Case(original(hidden_act="relu"), **WHOLE),
    "epsilon": Case(original(layer_norm_eps=1e-6), **WHOLE),
    # A key's bias moves no softmax: its gradient is rounding, so here there is none.
    "larger image": Case(
        original(qkv_bias=False), **WHOLE | dict(batch=images(20, 20)), gradients=True
    ),
    "smaller image": Case(original(), **WHOLE | dict(batch=images(8, 8))),
    "wide image": Case(original(), **WHOLE | dict(batch=images(8, 24))),
    "other shape, as many patches": Case(
        original(image_size=16), **WHOLE | dict(batch=images(8, 32))
    ),
    "rectangle": Case(original(image_size=(8, 16)), **WHOLE | dict(batch=images(8, 16))),
    "patches that do not divide": Case(
        original(image_size=14), **WHOLE | dict(batch=images(14, 14))
    ),
}
BASE = {"base": Case(original(base=True), **WHOLE | dict(batch=images(224, 224)))}
