"""Records `flax/CASE/`: tiny checkpoints that transformers' Flax classes wrote, and their outputs.

    python tests/golden/record_flax.py

Needs transformers 4 (recorded with 4.46.3), which was the last major version with Flax classes,
and PyTorch. Fails if the weights, loaded into the PyTorch class by transformers' own conversion,
do not give the same outputs. The tests that read what it writes need neither.
"""

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).parent / "flax"
TEXT = dict(
    hidden_size=8, num_attention_heads=2, intermediate_size=12, num_hidden_layers=2, vocab_size=20,
    max_position_embeddings=12,
)  # fmt: skip
IMAGE = dict(
    hidden_size=8, num_attention_heads=2, intermediate_size=12, num_hidden_layers=2, image_size=8,
    patch_size=4,
)  # fmt: skip
PROJECTED = dict(projection_dim=6)
PAIR = dict(
    text_config=TEXT | PROJECTED | dict(eos_token_id=19, bos_token_id=1),
    vision_config=IMAGE | PROJECTED,
    **PROJECTED,
)
ROBERTA = TEXT | dict(type_vocab_size=1)
# case -> class, its config, its keywords, and how it is saved
CASES = {
    "bert": ("BertModel", "BertConfig", TEXT, {}),
    "bert-words": ("BertForMaskedLM", "BertConfig", TEXT, {}),
    "bert-untied": ("BertForMaskedLM", "BertConfig", TEXT | dict(tie_word_embeddings=False), {}),
    "bert-pretraining": ("BertForPreTraining", "BertConfig", TEXT, {}),
    "bert-classifier": (
        "BertForSequenceClassification",
        "BertConfig",
        TEXT | dict(num_labels=3),
        dict(safe_serialization=True),
    ),
    "roberta-words": ("RobertaForMaskedLM", "RobertaConfig", ROBERTA, {}),
    "roberta-classifier": (
        "RobertaForSequenceClassification",
        "RobertaConfig",
        ROBERTA | dict(num_labels=3),
        {},
    ),
    "vit": ("ViTModel", "ViTConfig", IMAGE, {}),
    "vit-classifier": ("ViTForImageClassification", "ViTConfig", IMAGE | dict(num_labels=5), {}),
    "clip": ("CLIPModel", "CLIPConfig", PAIR, dict(max_shard_size=4000)),
    "clip-half": ("CLIPModel", "CLIPConfig", PAIR, {}),
}
OUTPUTS = (
    "last_hidden_state", "pooler_output", "logits", "prediction_logits", "logits_per_image",
    "logits_per_text", "image_embeds", "text_embeds",
)  # fmt: skip


def randomized(params, half):
    """Every weight random, norms around 1."""
    rng = np.random.default_rng(0)

    def one(path, x):
        noise = 0.3 * rng.normal(size=x.shape) + (path[-1].key == "scale")
        return jnp.asarray(noise, jnp.bfloat16 if half else jnp.float32)

    return jax.tree_util.tree_map_with_path(one, params)


def inputs(name):
    rng = np.random.default_rng(1)
    tokens = rng.integers(2, 19, (2, 7))
    mask = np.ones((2, 7), np.int64)
    mask[1, 5:] = 0
    tokens = np.where(mask == 1, tokens, 1)
    image = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    if name.startswith("vit"):
        return dict(pixel_values=image)
    text = dict(input_ids=tokens, attention_mask=mask)
    if not name.startswith("clip"):
        return text
    tokens[0, 6] = tokens[1, 4] = 19
    return text | dict(pixel_values=image)


def record(name, kind, config, keywords, saving):
    folder = ROOT / name
    shutil.rmtree(folder, ignore_errors=True)
    options = getattr(transformers, config)(**keywords)
    flax = getattr(transformers, f"Flax{kind}")(options)
    flax.params = randomized(flax.params, name.endswith("half"))
    flax.save_pretrained(folder, **saving)
    (folder / "generation_config.json").unlink(missing_ok=True)
    given = inputs(name)
    full = jax.tree.map(lambda x: x.astype(jnp.float32), flax.params)
    found = flax(**given, params=full)
    found = {key: np.asarray(found[key]) for key in OUTPUTS if key in found}
    if not saving:
        module = getattr(transformers, kind).from_pretrained(folder, from_flax=True).eval()
        with torch.no_grad():
            other = module(**{key: torch.tensor(value) for key, value in given.items()})
        for key, value in found.items():
            difference = np.abs(value - other[key].numpy()).max()
            assert difference < 1e-5 * max(1, np.abs(value).max()), (name, key, difference)
    arrays = {f"input:{key}": value for key, value in given.items()}
    np.savez_compressed(
        folder / "arrays.npz", **arrays, **{f"output:{key}": x for key, x in found.items()}
    )


if __name__ == "__main__":
    for name, case in CASES.items():
        record(name, *case)
