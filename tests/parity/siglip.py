"""SigLIP: transformers' SiglipModel and its parts."""

import numpy as np

from tests.parity.clip import call, call_resized, images
from tests.pretrained.cases import Case, randomized

SMALL = dict(
    hidden_size=16, num_attention_heads=4, intermediate_size=24, num_hidden_layers=2,
)  # fmt: skip
TEXT = dict(vocab_size=29, max_position_embeddings=9, bos_token_id=1, eos_token_id=2)
VISION = dict(image_size=16, patch_size=4)


def configuration(text=None, vision=None, **more):
    import transformers

    return transformers.SiglipConfig(
        text_config={**SMALL, **TEXT, **(text or {})},
        vision_config={**SMALL, **VISION, **(vision or {})},
        **more,
    )


def pair(text=None, vision=None, head="SiglipModel", **more):
    def make():
        import transformers

        return randomized(getattr(transformers, head)(configuration(text, vision, **more)))

    return make


def side(head, part, **changes):
    def make():
        import transformers

        config = getattr(configuration(**{part: changes}), f"{part}_config")
        return randomized(getattr(transformers, head)(config))

    return make


def texts(rng, length=9, vocabulary=29):
    """Padded to the full length and read without a mask."""
    return {"tokens": rng.integers(1, vocabulary, (2, length)).astype(np.int32)}


def masked(rng):
    """transformers takes a mask too; the last column is read even so."""
    mask = np.ones((2, 9), bool)
    mask[1, 3:6] = False
    return texts(rng) | {"text_mask": mask} | images(rng)


PAIR = dict(
    batch=lambda rng: texts(rng) | images(rng),
    call=call,
    hidden={"image_encoder/encoder": "vision_states", "text_encoder/encoder": "text_states"},
)
TEXT_SIDE = dict(
    batch=texts,
    call=call,
    hidden={"text_encoder/encoder": "hidden_states"},
    absent=("text_embeds",),
)
IMAGE_SIDE = dict(
    batch=images,
    call=call,
    hidden={"image_encoder/encoder": "hidden_states"},
    absent=("image_embeds",),
)
CASES = {
    "pair": Case(pair(), **PAIR, golden=True, gradients=True),
    "widths": Case(pair(dict(hidden_size=20, projection_size=16)), **PAIR),
    "gelu": Case(pair(dict(hidden_act="gelu"), dict(hidden_act="gelu")), **PAIR),
    "epsilon": Case(pair(dict(layer_norm_eps=1e-3), dict(layer_norm_eps=1e-2)), **PAIR),
    "mask": Case(
        pair(), **PAIR | dict(batch=masked, masks={"text_states": "text_mask"})
    ),
    "more pixels": Case(
        pair(),
        **PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, 28, 20), call=call_resized),
    ),
    "odd pixels": Case(
        pair(vision=dict(image_size=18)),
        **PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, 18, 18)),
    ),
    "text": Case(side("SiglipTextModel", "text"), **TEXT_SIDE),
    "image": Case(side("SiglipVisionModel", "vision"), **IMAGE_SIDE, golden=True),
    "no pooler": Case(side("SiglipVisionModel", "vision", vision_use_head=False), **IMAGE_SIDE),
    "classifier": Case(
        pair(head="SiglipForImageClassification", num_labels=3),
        **IMAGE_SIDE | dict(absent=("pooler_output", "last_hidden_state", "image_embeds")),
    ),
}  # fmt: skip


def base():
    import transformers

    return randomized(transformers.SiglipModel(transformers.SiglipConfig()))


def base_batch(rng):
    return texts(rng, length=64, vocabulary=32000) | images(rng, 2, 224, 224)


BASE = {"B/16": Case(base, **PAIR | dict(batch=base_batch))}
