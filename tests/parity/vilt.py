"""ViLT: transformers' ViltModel and its heads."""

import contextlib

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="ViltModel", base=False, untie=False, **changes):
    def make():
        import transformers

        small = dict(
            hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2,
            vocab_size=30, max_position_embeddings=12, image_size=12, patch_size=4,
        )  # fmt: skip
        config = transformers.ViltConfig(**({} if base else small) | changes)
        module = getattr(transformers, head)(config)
        if untie:  # as dandelin/vilt-b32-mlm is; transformers then leaves the two apart
            weight = module.mlm_score.decoder.weight
            module.mlm_score.decoder.weight = type(weight)(weight.detach().clone())
        return randomized(module)

    return make


def save_whole(module, directory):
    """Every tensor, whatever transformers would suppose to be tied."""
    from safetensors.torch import save_file

    module.save_pretrained(directory)
    tensors = {name: x.clone() for name, x in module.state_dict().items()}
    save_file(tensors, f"{directory}/model.safetensors", metadata={"format": "pt"})


def batch(rng, size=(12, 12), parts=(), second=False, patch=4, vocabulary=30, length=7):
    """`parts`: the pixels (down, across) of each image that are not padding."""
    mask = np.ones((2, length), bool)
    mask[1, length - 2 :] = False
    found = {
        "image": rng.normal(size=(2, *size, 3)).astype(np.float32),
        "tokens": rng.integers(1, vocabulary, (2, length)).astype(np.int32),
        "text_mask": mask,
        "token_types": rng.integers(0, 2, (2, length)).astype(np.int32),
    }
    if parts:
        pixels = np.zeros((2, *size), bool)
        for row, (down, across) in zip(pixels, parts, strict=True):
            row[:down, :across] = True
        found["pixel_mask"] = pixels
    if second:
        found["second_image"] = rng.normal(size=(2, *size, 3)).astype(np.float32)
        if parts:
            found["second_pixel_mask"] = pixels.copy()
    grid = (size[0] // patch, size[1] // patch)
    patches = np.ones((2, *grid), bool)
    for row, part in zip(patches, parts, strict=False):
        row[-(-part[0] // patch) :] = False
        row[:, -(-part[1] // patch) :] = False
    # Which tokens of the joined sequence mean something: for the comparison alone.
    joined = [mask, np.ones((2, 1), bool), patches.reshape(2, -1)]
    return found | {"joined_mask": np.concatenate(joined, axis=1)}


@contextlib.contextmanager
def in_order():
    """transformers draws the patches of full images in random order: draw them in theirs."""
    import torch

    drawn = torch.multinomial

    def first(weights, count, replacement=False):
        return torch.arange(int(count)) % len(weights)

    torch.multinomial = first
    try:
        yield
    finally:
        torch.multinomial = drawn


def call(module, batch):
    import torch

    names = dict(
        input_ids="tokens", attention_mask="text_mask", token_type_ids="token_types",
        pixel_values="image", pixel_mask="pixel_mask",
    )  # fmt: skip
    inputs = torch_batch(batch, **{k: v for k, v in names.items() if v in batch})
    if "second_image" in batch:
        second = torch_batch(
            batch,
            **{"pixel_values": "second_image"},
            **({"pixel_mask": "second_pixel_mask"} if "pixel_mask" in batch else {}),
        )
        inputs |= {k: torch.stack([inputs[k], second[k]], dim=1) for k in second}
    if "pixel_mask" not in batch:  # without one transformers supposes its own image size
        pixels = inputs["pixel_values"].select(-3, 0)
        inputs["pixel_mask"] = torch.ones(pixels.shape, dtype=torch.long)
    if type(module).__name__ == PAIRS and "second_image" not in batch:
        inputs["pixel_mask"] = inputs["pixel_mask"][:, None]
    with in_order():
        found = dict(module(**inputs, output_hidden_states=True))
    states = found.pop("hidden_states")
    states = states[-1] if isinstance(states, list) else states
    found["hidden_states"] = tuple(placed(x, batch) for x in states)
    if "last_hidden_state" in found:
        found["last_hidden_state"] = placed(found["last_hidden_state"], batch)
    return found


def placed(x, batch):
    """transformers moves every image's own patches to the front: put them in their places."""
    import torch

    text = batch["text_mask"].shape[1] + 1
    mask = torch.tensor(batch["joined_mask"][:, text:])
    out = x.new_zeros(x.shape[0], text + mask.shape[1], x.shape[2])
    out[:, :text] = x[:, :text]
    for row, (source, here) in enumerate(zip(x[:, text:], mask, strict=True)):
        out[row, text:][here] = source[: int(here.sum())]
    return out


WHOLE = dict(
    batch=batch,
    call=call,
    hidden={"fusion/encoder": "hidden_states"},
    masks={"last_hidden_state": "joined_mask", "hidden_states": "joined_mask"},
)
HEAD = WHOLE | dict(absent=("last_hidden_state", "pooler_output"))
WORDS = HEAD | dict(masks=WHOLE["masks"] | {"logits": "text_mask"})
PADDED = WHOLE | dict(batch=lambda rng: batch(rng, (12, 16), parts=((12, 8), (6, 16))))
# The hidden states compared are those of the second image.
PAIR = HEAD | dict(batch=lambda rng: batch(rng, second=True))
QUESTIONS = "ViltForQuestionAnswering"
PAIRS = "ViltForImagesAndTextClassification"
CASES = {
    "plain": Case(original(), **WHOLE, golden=True, gradients=True),
    "padded": Case(original(), **PADDED, golden=True, gradients=True),
    "questions": Case(original(QUESTIONS, num_labels=5), **HEAD, golden=True, gradients=True),
    "images and text": Case(
        original(PAIRS, num_images=2, modality_type_vocab_size=3, num_labels=2),
        **PAIR,
        gradients=True,
    ),
    "padded images and text": Case(
        original(PAIRS, num_images=2, modality_type_vocab_size=3, num_labels=2),
        **PAIR
        | dict(
            batch=lambda rng: batch(rng, (12, 16), parts=((12, 8), (6, 16)), second=True),
        ),
    ),
    "one image and text": Case(original(PAIRS, num_images=1, num_labels=3), **HEAD),
    "words": Case(original("ViltForMaskedLM"), **WORDS, gradients=True),
    "words untied": Case(original("ViltForMaskedLM", untie=True), **WORDS | dict(save=save_whole)),
    "matching": Case(original("ViltForImageAndTextRetrieval"), **HEAD, gradients=True),
    "gelu_new": Case(original("ViltForMaskedLM", hidden_act="gelu_new"), **WORDS),
    "epsilon": Case(original("ViltForMaskedLM", layer_norm_eps=1e-3), **WORDS),
    "no bias of queries": Case(original(qkv_bias=False), **WHOLE),
    "one type": Case(
        original(type_vocab_size=1),
        **WHOLE | dict(batch=lambda rng: batch(rng) | {"token_types": np.zeros((2, 7), np.int32)}),
    ),
    "a rectangle": Case(original(), **WHOLE | dict(batch=lambda rng: batch(rng, (8, 20)))),
    "one row of patches": Case(original(), **WHOLE | dict(batch=lambda rng: batch(rng, (4, 16)))),
    "sides that do not divide": Case(
        original(),
        **WHOLE | dict(batch=lambda rng: batch(rng, (14, 19), parts=((14, 19), (7, 10)))),
    ),
}
BASE = {
    "base": Case(
        original(base=True),
        **WHOLE
        | dict(
            batch=lambda rng: batch(
                rng, (384, 608), ((384, 576), (320, 608)), patch=32, vocabulary=30522, length=24
            )
        ),
    )
}
