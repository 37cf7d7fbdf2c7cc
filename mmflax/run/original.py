"""Comparing a checkpoint with the original model in PyTorch (`mmflax convert --check`).

Both run in float32 on one batch of random inputs. What is drawn is what the original is defined
for: no id that is special in the family (RoBERTa counts positions from ids that are not padding,
CLIP pools where the end token is), token types that there are, boxes whose corners are in order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.errors import MmflaxError
from mmflax.pretrained.checkpoint import Pretrained, from_pretrained

# What `mmflax convert --check` accepts: float32, and sums in another order.
BOUND = 1e-4
# Keywords of transformers' models -> keys of our batch.
INPUTS = {
    "input_ids": "tokens",
    "attention_mask": "text_mask",
    "token_type_ids": "token_types",
    "pixel_values": "image",
    "pixel_mask": "pixel_mask",
    "visual_feats": "regions",
    "visual_embeds": "regions",
    "visual_pos": "boxes",
    "visual_attention_mask": "region_mask",
    "decoder_input_ids": "target",
}
# Where a class reads something else.
OTHER_INPUTS = {
    "BlipForConditionalGeneration": {"input_ids": "target", "attention_mask": "target_mask"},
}
# Our output -> what transformers calls it in classes that have no output of our name.
OTHER_NAMES = {
    "logits": ("prediction_logits",),
    "word_logits": ("prediction_logits",),
    "matching_logits": ("cross_relationship_score", "seq_relationship_logits", "itm_score"),
    "answer_logits": ("question_answering_score",),
    "pooler_output": ("pooled_output",),
    "last_hidden_state": ("language_output",),
}
# Outputs of ours that a class keeps to itself: output -> the module inside that gives it.
INSIDE = {
    "BlipForQuestionAnswering": {"question_embeds": "text_encoder", "logits": "text_decoder"},
    "LxmertForPreTraining": dict.fromkeys(("obj", "attr", "feat"), "obj_predict_head"),
}
# Outputs whose tokens transformers puts in a random order: class's start -> output.
UNORDERED = {"Vilt": "last_hidden_state"}


class Checked(NamedTuple):
    """What a comparison found.

    Attributes:
      architecture: transformers' class.
      differences: output -> the largest difference over the original's largest value.
      notes: lines on what could not be compared.
    """

    architecture: str
    differences: dict[str, float]
    notes: tuple[str, ...]


def check(source: str, *, seed: int = 0, family: str | None = None) -> Checked:
    """The difference of every output that both give.

    The original is transformers' class of the config's `architectures`, or without one the bare
    model of its `model_type`.

    Raises:
      MmflaxError: the extra `parity` is not installed, transformers lacks the architecture or
        cannot read the files, an output has another shape or is not finite, or none is shared.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MmflaxError(
            "--check compares with the original in PyTorch; install it with "
            "pip install 'mmflax[parity]'."
        ) from error
    ours = from_pretrained(source, family=family)
    name, theirs, absent = _original(transformers, ours, source)
    theirs = theirs.float().eval()
    batch = random_batch(ours, np.random.default_rng(seed), theirs.config)
    given = _inputs(torch, theirs, batch)
    try:
        with torch.no_grad():
            found, inside = _outputs(theirs, given)
    except Exception as error:
        raise MmflaxError(
            f"{name} of transformers does not run on {', '.join(given)} "
            f"({_first_line(error)}), so there is nothing to compare with."
        ) from error
    outputs = jax.jit(lambda p, b: ours.model.apply({"params": p}, b))(ours.params, batch)
    differences, lacking, used = {}, [], set()
    for key, value in outputs.items():
        names = [other for other in (key, *OTHER_NAMES.get(key, ())) if other in found]
        if names:
            other = found[names[0]]
        elif key in inside and _flat(inside[key].numpy(), value.ndim).shape == value.shape:
            other = inside[key]
        else:
            lacking.append(key)
            continue
        used |= set(names[:1])
        start = batch["tokens"].shape[1] + 1 if UNORDERED.get(name[:4]) == key else None
        differences[key] = _difference(key, np.asarray(value), other.numpy(), start)
    if not differences:
        raise MmflaxError(
            f"{name} gives {', '.join(found)} and our {ours.config['fields']['name']} gives "
            f"{', '.join(outputs)}: they share no output, so there is nothing to compare."
        )
    if absent and not all(value < BOUND for value in differences.values()):
        raise MmflaxError(
            f"{name} of transformers does not find {len(absent)} of its parameters in {source}, "
            f"such as {absent[0]}, and draws them at random, so there is nothing to compare with."
        )
    notes = [f"not compared, {name} does not give it: {', '.join(lacking)}"] if lacking else []
    rest = [key for key in found if key not in used and key != "loss"]
    notes += [f"not compared, ours does not give it: {', '.join(rest)}"] if rest else []
    notes += [f"not in the file, so transformers draws it at random: {x}" for x in absent[:5]]
    return Checked(name, differences, tuple(notes))


def _original(transformers: Any, ours: Pretrained, source: str) -> tuple[str, Any, list[str]]:
    """(class's name, model, its parameters that are not in the file)."""
    original = ours.config["original"]
    name = (original.get("architectures") or [None])[0]
    if name is not None and not hasattr(transformers, str(name)):
        raise MmflaxError(
            f"{source} names the architecture {name!r}, which transformers lacks; there is nothing "
            "to compare with."
        )
    family = ours.config["family"]
    if name is None and original.get("model_type") not in transformers.CONFIG_MAPPING:
        raise MmflaxError(
            f"{source} names no architecture, and transformers has no model of our family "
            f"{family!r}; there is nothing to compare with."
        )
    cls = transformers.AutoModel if name is None else getattr(transformers, name)
    try:
        # Without the type a file is rounded to that which its config names.
        options: dict[str, Any] = dict(output_loading_info=True, dtype="float32")
        model, info = cls.from_pretrained(ours.config["source"], **options)
    except Exception as error:
        raise MmflaxError(
            f"transformers cannot read {source} as {name or 'AutoModel'} "
            f"({_first_line(error)}); there is nothing to compare with."
        ) from error
    for part in model.modules():  # a config, also that of a part, may ask for tuples
        if hasattr(getattr(part, "config", None), "return_dict"):
            part.config.return_dict = True
    return type(model).__name__, model, sorted(info.get("missing_keys") or ())


def _outputs(theirs: Any, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the original's outputs, and others that modules inside it give)."""
    found: dict[str, Any] = {}
    inside: dict[str, Any] = {}

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        for key, value in output.items() if hasattr(output, "items") else ():
            inside.setdefault(key, value)  # of a model that is called for two images the first

    if theirs.base_model is not theirs:
        theirs.base_model.register_forward_hook(keep)
    for key, part in INSIDE.get(type(theirs).__name__, {}).items():

        def name(_module: Any, _inputs: Any, output: Any, key: str = key) -> None:
            if key in output:
                found[key] = output[key]
            elif type(output) is not dict:
                found[key] = output[0]

        if hasattr(theirs, part):
            getattr(theirs, part).register_forward_hook(name)
    found |= theirs(**given)
    maps = found.get("feature_maps")
    if maps and theirs.out_features[-1] == theirs.stage_names[-1]:  # a backbone's last stage
        found["last_hidden_state"] = maps[-1]
    return tuple(  # type: ignore[return-value]
        {key: value for key, value in each.items() if hasattr(value, "numpy")}
        for each in (found, inside)
    )


def _inputs(torch: Any, theirs: Any, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the original is called with."""
    wanted = inspect.signature(theirs.forward).parameters
    name = type(theirs).__name__
    given = {
        keyword: _tensor(torch, batch[key])
        for keyword, key in (INPUTS | OTHER_INPUTS.get(name, {})).items()
        if keyword in wanted and key in batch
    }
    if "second_image" in batch:
        pair = [given["pixel_values"], _tensor(torch, batch["second_image"])]
        given["pixel_values"] = torch.stack(pair, dim=1)
    if name.endswith("ImagesAndTextClassification"):
        pixels = given["pixel_values"]
        given["pixel_values"] = pixels if pixels.ndim == 5 else pixels[:, None]
        shape = given["pixel_values"].shape
        given["pixel_mask"] = torch.ones((*shape[:2], *shape[3:]), dtype=torch.long)
    if name.endswith("ForMultipleChoice"):
        given = {keyword: tensor[:, None] for keyword, tensor in given.items()}
    return given


def _difference(key: str, ours: np.ndarray, theirs: np.ndarray, unordered: int | None) -> float:
    """The largest difference over theirs' largest value.

    Args:
      key: the output's name.
      ours: [b n d] where theirs may be a map [b d h w], [b d] where it may be [b d 1 1].
      theirs: the original's.
      unordered: the tokens from this one on are theirs in any order.
    """
    theirs = _flat(theirs, ours.ndim)
    if ours.shape != theirs.shape:
        raise MmflaxError(
            f"{key} has shape {list(ours.shape)} and in the original {list(theirs.shape)}; expected"
            " the same. Do not rely on this conversion."
        )
    for whose, array in (("ours", ours), ("the original's", theirs)):
        if not np.isfinite(array).all():
            raise MmflaxError(
                f"{key} has numbers that are not finite ({whose}); expected finite ones. Do not "
                "rely on this conversion."
            )
    if unordered is not None:
        theirs = np.concatenate(
            [theirs[:, :unordered], _matched(ours[:, unordered:], theirs[:, unordered:])], axis=1
        )
    scale = max(float(np.abs(theirs).max(initial=0.0)), 1e-6)
    return float(np.abs(ours - theirs).max(initial=0.0)) / scale


def _flat(theirs: np.ndarray, ndim: int) -> np.ndarray:
    """A map [b d h w] as tokens [b n d] where ours has 3 axes, [b d 1 1] as a vector where 2."""
    if theirs.ndim != 4 or ndim not in (2, 3):
        return theirs
    flat = theirs.reshape(*theirs.shape[:2], -1).swapaxes(1, 2)
    return flat if ndim == 3 else flat[:, 0]


def _matched(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Theirs [b n d] in the order in which each token is nearest to ours, where that is one."""
    found = theirs.copy()
    for row, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        nearest = np.array([np.square(b - token).sum(axis=-1).argmin() for token in a])
        if len(set(nearest)) == len(b):
            found[row] = b[nearest]
    return found


def random_batch(
    pretrained: Pretrained, rng: np.random.Generator, config: Any = None
) -> dict[str, np.ndarray]:
    """Two rows of random inputs in the shapes of the family's own dummy batch; all masks true.

    Args:
      pretrained: the checkpoint.
      rng: draws them.
      config: transformers' config object, which knows the defaults that a file leaves out.
    """
    zeros = pretrained.model.zeros(2)
    words, end = _words(pretrained, config)
    batch = {}
    for key, value in zeros.items():
        shape = value.shape
        if value.dtype == jnp.bool_:
            batch[key] = np.ones(shape, bool)
        elif key == "token_types":
            batch[key] = rng.integers(0, _types(pretrained), shape, np.int32)
        elif jnp.issubdtype(value.dtype, jnp.integer):
            batch[key] = rng.choice(words, shape).astype(np.int32)
            if end is not None and key == "tokens":
                batch[key][:, -1] = end
        elif key == "boxes":
            corners = np.sort(rng.random((*shape[:-1], 2, 2), np.float32), axis=-2)
            batch[key] = corners.reshape(shape)
        else:
            batch[key] = rng.standard_normal(shape, np.float32)
    types = _types(pretrained)
    if "tokens" in batch and "token_types" not in batch and types > 1:
        batch["token_types"] = rng.integers(0, types, batch["tokens"].shape, np.int32)
    return batch


def _words(pretrained: Pretrained, config: Any) -> tuple[np.ndarray, int | None]:
    """Ids that are words and no special tokens, and the token that has to end a text, if any."""
    original = pretrained.config["original"]
    texts = [original, original.get("text_config") or {}, *_as_dicts(config)]
    special: set[int] = set()
    for one in texts:
        for key, value in one.items():
            if key.endswith(("token_id", "token_index")):
                special |= {int(i) for i in np.ravel(value) if isinstance(i, int | np.integer)}
    processor = pretrained.processor
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        roles = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
        special |= {getattr(tokenizer, role) for role in roles} - {None}
    text = pretrained.config["fields"].get("text_encoder") or {}
    size = min(_sizes(pretrained.config["fields"]), default=100)
    words = np.setdiff1d(np.arange(size), sorted(special))
    return words if words.size else np.arange(size), text.get("end_token")


def _sizes(fields: Mapping[str, Any]) -> Iterator[int]:
    """Every `vocab_size` among keywords and the keywords of parts."""
    for key, value in fields.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif key == "vocab_size":
            yield int(value)


def _types(pretrained: Pretrained) -> int:
    """Token types that the text encoder has; 1 where it has none."""
    text = pretrained.config["fields"].get("text_encoder") or {}
    return max(int(text.get("num_token_types") or 1), 1)


def _as_dicts(config: Any) -> list[Mapping[str, Any]]:
    """transformers' config and that of its text, as dicts."""
    both = (config, getattr(config, "text_config", None))
    return [one.to_dict() for one in both if one is not None and hasattr(one, "to_dict")]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _tensor(torch: Any, array: np.ndarray) -> Any:
    if array.ndim == 4:
        array = array.transpose(0, 3, 1, 2)
    tensor = torch.tensor(np.ascontiguousarray(array))
    return tensor if tensor.is_floating_point() else tensor.long()
