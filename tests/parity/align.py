"""ALIGN: transformers' AlignModel and its parts."""

import numpy as np

from tests.parity.clip import images
from tests.pretrained.cases import Case, randomized, save_half, torch_batch

TEXT = dict(
    hidden_size=16, num_attention_heads=4, intermediate_size=24, num_hidden_layers=2, vocab_size=29,
    max_position_embeddings=12,
)  # fmt: skip
# Stages of every kind: without expansion, of stride 2 with either kernel, repeated.
VISION = dict(
    image_size=32, width_coefficient=0.5, depth_coefficient=1.1, kernel_sizes=[3, 3, 5],
    in_channels=[32, 16, 24], out_channels=[16, 24, 40], strides=[1, 2, 2],
    num_block_repeats=[1, 1, 2], expand_ratios=[1, 6, 4], hidden_dim=64,
)  # fmt: skip


def configuration(text=None, vision=None):
    import transformers

    vision = {**VISION, **(vision or {})}
    # The image's vectors are as wide as its last map, and so must the text's be.
    whole = vision.get("depth_divisor", 8)
    width = vision["out_channels"][-1] * vision["width_coefficient"]
    width = int(width + whole / 2) // whole * whole
    return transformers.AlignConfig(
        text_config={**TEXT, **(text or {})}, vision_config=vision, projection_dim=width
    )


def pair(text=None, vision=None):
    def make():
        import transformers

        return randomized(transformers.AlignModel(configuration(text, vision)))

    return make


def side(head, part, **changes):
    def make():
        import transformers

        config = getattr(configuration(**{part: changes}), f"{part}_config")
        return randomized(getattr(transformers, head)(config))

    return make


def texts(rng, length=9, vocabulary=29):
    mask = np.ones((2, length), bool)
    mask[1, length - 3 :] = False
    return {
        "tokens": rng.integers(1, vocabulary, (2, length)).astype(np.int32),
        "text_mask": mask,
        "token_types": rng.integers(0, 2, (2, length)).astype(np.int32),
    }


def call(module, batch):
    """Maps are channels last here, and the last one a row of tokens."""
    names = dict(input_ids="tokens", attention_mask="text_mask", token_type_ids="token_types")
    text = torch_batch(batch, **names) if "tokens" in batch else {}
    image = torch_batch(batch, pixel_values="image") if "image" in batch else {}
    out = dict(module(**text, **image, output_hidden_states=True).items())
    if text and image:
        out["text_states"] = out.pop("text_model_output").hidden_states
        out["vision_states"] = out.pop("vision_model_output").hidden_states
    elif image:
        out["vision_states"] = out.pop("hidden_states")
        out["last_hidden_state"] = out["last_hidden_state"].flatten(2).transpose(1, 2)
    if image:
        out["vision_states"] = tuple(x.permute(0, 2, 3, 1) for x in out["vision_states"])
    return out


PAIR = dict(
    batch=lambda rng: texts(rng) | images(rng, 2, 32, 32),
    call=call,
    hidden={"image_encoder": "vision_states", "text_encoder/encoder": "text_states"},
    masks={"text_states": "text_mask"},
)
IMAGE_SIDE = dict(
    batch=lambda rng: images(rng, 2, 32, 32),
    call=call,
    hidden={"image_encoder": "vision_states"},
    absent=("image_embeds",),
)


def pixels(height, width):
    return PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, height, width))


CASES = {
    "pair": Case(pair(), **PAIR, save=save_half, golden=True, gradients=True),
    "rectangle": Case(pair(), **pixels(48, 40)),
    "odd pixels": Case(pair(vision=dict(image_size=37)), **pixels(37, 37)),
    "square padding": Case(pair(vision=dict(depthwise_padding=[2])), **PAIR),
    "rounding": Case(pair(vision=dict(width_coefficient=0.7, depth_divisor=4)), **PAIR),
    "squeeze": Case(pair(vision=dict(squeeze_expansion_ratio=0.1)), **PAIR),
    "epsilon": Case(pair(dict(layer_norm_eps=1e-3), dict(batch_norm_eps=0.1)), **PAIR),
    "activations": Case(pair(dict(hidden_act="gelu_new"), dict(hidden_act="gelu")), **PAIR),
    "maximum": Case(pair(vision=dict(pooling_type="max")), **PAIR),
    "text": Case(
        side("AlignTextModel", "text"),
        texts,
        call,
        hidden={"text_encoder/encoder": "hidden_states"},
        masks={"last_hidden_state": "text_mask", "hidden_states": "text_mask"},
    ),
    "image": Case(side("AlignVisionModel", "vision"), **IMAGE_SIDE),
}


def base():
    import transformers

    return randomized(transformers.AlignModel(transformers.AlignConfig()))


def base_batch(rng):
    return texts(rng, length=64, vocabulary=30522) | images(rng, 1, 289, 289)


BASE = {"base": Case(base, **PAIR | dict(batch=base_batch))}
