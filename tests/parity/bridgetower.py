"""BridgeTower: transformers' BridgeTowerModel and its heads."""

import numpy as np

from tests.pretrained.cases import Case, randomized, save_half, torch_batch


def original(head="BridgeTowerModel", base=False, text=(), image=(), **changes):
    """The image encoder's heads are 64 wide whatever the config says."""

    def make():
        import transformers

        small_text = dict(
            hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=3,
            vocab_size=30, max_position_embeddings=14,
        )  # fmt: skip
        small_image = dict(hidden_size=64, num_hidden_layers=3, patch_size=4, image_size=8)
        small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
        config = transformers.BridgeTowerConfig(
            text_config=({} if base else small_text) | dict(text),
            vision_config=({} if base else small_image) | dict(image),
            **({} if base else small) | changes,
        )
        return randomized(getattr(transformers, head)(config))

    return make


def batch(rng, size=(8, 8), vocabulary=30, length=7):
    """Word 1 is RoBERTa's padding: positions are counted past it."""
    tokens = rng.integers(2, vocabulary, (2, length)).astype(np.int32)
    mask = np.ones((2, length), bool)
    mask[1, length - 2 :] = False
    tokens[~mask] = 1
    return {
        "image": rng.normal(size=(2, *size, 3)).astype(np.float32),
        "tokens": tokens,
        "text_mask": mask,
    }


def call(module, batch):
    import torch

    names = dict(input_ids="tokens", attention_mask="text_mask", pixel_values="image")
    body = getattr(module, "bridgetower", module)
    kept = []
    hook = body.register_forward_hook(lambda _, inputs, output: kept.append(output))
    size = body.config.vision_config.image_size
    resized = batch["image"].shape[1:3] != (size, size)
    more = dict(interpolate_pos_encoding=True) if resized else {}
    found = module(**torch_batch(batch, **names), output_hidden_states=True, **more)
    hook.remove()
    text, image, cross = kept[0].hidden_states
    start = tuple(torch.zeros_like(x) for x in cross[0])
    cross = (start, *cross)
    pooled = ("text_features", "image_features", "pooler_output")
    out = {name: kept[0][name] for name in pooled} | {
        "text_states": text,
        "image_states": tuple(x.permute(1, 0, 2) for x in image),
        "cross_text_states": tuple(x[0] for x in cross),
        "cross_image_states": tuple(x[1] for x in cross),
    }
    if "cross_embeds" in found:
        embeds = {name: found[f"{name}_embeds"] for name in ("text", "image", "cross")}
        out |= {f"{name}_embeds": x for name, x in embeds.items()}
        out["contrastive"] = found.logits
        scale = module.logit_scale.exp()
        for a, b in (("text", "image"), ("text", "cross"), ("image", "cross")):
            out[f"logits_{a}_to_{b}"] = embeds[a] @ embeds[b].T * scale
    elif "logits" in found:
        out["logits"] = found.logits
    return out


WHOLE = dict(
    batch=batch,
    call=call,
    hidden={
        "text_encoder/encoder": "text_states",
        "image_encoder/encoder": "image_states",
        "fusion/encoder": ("cross_image_states", "cross_text_states"),
    },
    masks=dict.fromkeys(("text_features", "text_states", "cross_text_states"), "text_mask"),
)
WORDS = WHOLE | dict(masks=WHOLE["masks"] | {"logits": "text_mask"})


TINY = dict(text=dict(num_hidden_layers=2), image=dict(num_hidden_layers=2))
CASES = {
    "plain": Case(original(**TINY), **WHOLE, save=save_half, golden=True, gradients=True),
    "whole precision": Case(original(**TINY), **WHOLE, gradients=True),
    "words": Case(original("BridgeTowerForMaskedLM"), **WORDS, gradients=True),
    "words tied": Case(original("BridgeTowerForMaskedLM", tie_word_embeddings=True), **WORDS),
    "matching": Case(original("BridgeTowerForImageAndTextRetrieval"), **WHOLE),
    "contrastive": Case(  # wants one width everywhere
        original(
            "BridgeTowerForContrastiveLearning",
            contrastive_hidden_size=8,
            logit_scale_init_value=2.6592,
            hidden_size=64,
            text=dict(hidden_size=64),
        ),
        **WHOLE,
        gradients=True,
    ),
    "two heads, one layer of fusion": Case(
        original(image=dict(hidden_size=128), num_hidden_layers=1), **WHOLE
    ),
    "fusion of all layers": Case(original(num_hidden_layers=3), **WHOLE),
    "scaled add": Case(original(link_tower_type="scaled_add"), **WHOLE, gradients=True),
    "interpolate": Case(original(link_tower_type="interpolate"), **WHOLE, gradients=True),
    "own projections": Case(
        original(share_cross_modal_transformer_layers=False), **WHOLE, gradients=True
    ),
    "separate norms that are not read": Case(original(image=dict(share_layernorm=False)), **WHOLE),
    "last image layer removed": Case(
        original(image=dict(remove_last_layer=True, num_hidden_layers=4)), **WHOLE
    ),
    "epsilons": Case(
        original(
            "BridgeTowerForMaskedLM",
            layer_norm_eps=1e-3,
            text=dict(layer_norm_eps=1e-4),
            image=dict(layer_norm_eps=1e-2),
        ),
        **WORDS,
    ),
    "activations": Case(
        original("BridgeTowerForMaskedLM", hidden_act="gelu_new", text=dict(hidden_act="gelu_new")),
        **WORDS,
    ),
    "another image size": Case(
        original(), **WHOLE | dict(batch=lambda rng: batch(rng, size=(12, 12)))
    ),
    "a rectangle": Case(original(), **WHOLE | dict(batch=lambda rng: batch(rng, size=(16, 8)))),
}
BASE = {
    "base": Case(
        original(base=True),
        **WHOLE | dict(batch=lambda rng: batch(rng, size=(288, 288), vocabulary=50265, length=24)),
    )
}
