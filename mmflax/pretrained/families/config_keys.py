"""What each key of an original's config.json means to the family that reads it, as plain data.

A family has a table `KEYS`, model_type -> `Keys`. Every key of a config is in one of its groups, so
that nothing of an original is ignored without a decision: *used* (with the kind of value and the
original's default), *fixed* (only values that mean what the family builds), *harmless* (the outputs
do not depend on it), or a *part*, a config inside with a table of its own. `checked` refuses
everything else; `completed` fills in what a config.json leaves out as transformers does.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mmflax.errors import MmflaxError
from mmflax.registry import nearest


class Kind(NamedTuple):
    """A kind of value: what a message calls it, and whether a value is one."""

    expected: str
    accepts: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and math.isfinite(value))


def _size(value: Any) -> bool:
    return _whole(value) and value > 0


def _sizes(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(_size, value))


def _pair(value: Any) -> bool:
    return _sizes(value) and len(value) == 2


# transformers' names of the activations that there are here, and our names.
ACTIVATIONS = {
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "swish", "swish": "swish", "relu": "relu", "tanh": "tanh",
}  # fmt: skip

SIZE = Kind("a whole number above 0", _size)
WIDTH = Kind("a multiple of 64, the width of a head", lambda x: _size(x) and x % 64 == 0)
COUNT = Kind("a whole number from 0 on", lambda value: _whole(value) and value >= 0)
SIZES = Kind("a list of whole numbers above 0", _sizes)
COUNTS = Kind(
    "a list of whole numbers from 0 on",
    lambda value: isinstance(value, list | tuple) and all(_whole(x) and x >= 0 for x in value),
)
SIDES = Kind("a size or two of them", lambda value: _size(value) or _pair(value))
SIDE = Kind(
    "a size or twice the same", lambda value: _size(value) or (_pair(value) and len({*value}) == 1)
)
POSITIVE = Kind("a number above 0", lambda value: _number(value) and value > 0)
EPSILON = Kind("a number from 0 on", lambda value: _number(value) and value >= 0)
RATE = Kind("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
ACTIVATION = Kind(
    f"one of {', '.join(ACTIVATIONS)}",
    lambda value: isinstance(value, str) and value in ACTIVATIONS,
)
LABELS = Kind("an object, number -> label", lambda value: isinstance(value, Mapping))
NAMES = Kind(
    "a list of names",
    lambda value: isinstance(value, list | tuple) and all(isinstance(x, str) for x in value),
)


def one_of(*values: str) -> Kind:
    """The kind of these texts."""
    expected = f"one of {', '.join(map(repr, values))}"
    return Kind(expected, lambda value: isinstance(value, str) and value in values)


class Key(NamedTuple):
    """A key that is used: its kind and the original's default.

    null stands for the default None, where that is the default; elsewhere it is refused.
    """

    kind: Kind
    default: Any


class Keys(NamedTuple):
    """The keys of one config; see the module. The groups of `COMMON` belong to every config.

    Attributes:
      used: key -> `Key`.
      fixed: key -> the values that mean what the family builds.
      harmless: keys on which the outputs do not depend.
      parts: key -> the table of the config inside; null and absence are all its defaults.
      older: of `parts` those whose older spelling, with `_dict` behind it, stands for the whole
        part where a config has both, as transformers reads it.
      divisible: (size, number of heads), the keys of a size and of what has to divide it.
      equally_long: keys of lists with an entry for each stage.
    """

    used: Mapping[str, Key] = {}
    fixed: Mapping[str, Sequence[Any]] = {}
    harmless: Collection[str] = ()
    parts: Mapping[str, Any] = {}
    older: Collection[str] = ()
    divisible: tuple[str, str] = ("hidden_size", "num_attention_heads")
    equally_long: tuple[str, ...] = ()

    def key(self, name: str) -> Key | None:
        """How `name` is used, or None."""
        return self.used.get(name) or (None if self.knows_unused(name) else COMMON.used.get(name))

    def knows_unused(self, name: str) -> bool:
        """Whether the table itself says that `name` is not read."""
        return name in self.fixed or name in self.harmless

    def accepted(self, name: str) -> Sequence[Any] | None:
        """The values that `name` may have, or None where it is not fixed."""
        if name in self.used or name in self.harmless:
            return None
        return self.fixed.get(name, COMMON.fixed.get(name))

    def names(self) -> set[str]:
        """Every key that is known."""
        own = {*self.used, *self.fixed, *self.harmless, *self.parts}
        older = {f"{name}_dict" for name in self.older}
        return own | older | {*COMMON.used, *COMMON.fixed, *COMMON.harmless}


# Settings of transformers' generation, which models of every kind wrote into their config.
GENERATION = (
    "bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_ids",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "length_penalty", "max_length", "max_new_tokens", "min_length", "min_new_tokens",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
)  # fmt: skip

# What the configs of all models may have, from transformers' base class of several years and from
# published files.
COMMON = Keys(
    used=dict(
        id2label=Key(LABELS, None),
        num_labels=Key(COUNT, None),
        architectures=Key(NAMES, None),
    ),
    fixed=dict(
        is_decoder=(False, None),
        add_cross_attention=(False, None),
        is_encoder_decoder=(False, None),
        pruned_heads=({}, None),
        quantization_config=(None,),
    ),
    harmless=(
        *GENERATION,
        # Where a file came from, and for which software.
        "model_type", "_name_or_path", "name_or_path", "transformers_version", "_commit_hash",
        "_auto_class", "torch_dtype", "dtype", "torchscript", "use_bfloat16", "tf_legacy_loss",
        "xla_device", "attn_implementation", "_attn_implementation",
        "_attn_implementation_internal", "_attn_implementation_autoset", "_flash_attn_2_enabled",
        "_experts_implementation_internal", "_output_attentions", "name", "language",
        # How a call answers, how its memory is used, how training goes on.
        "output_attentions", "output_hidden_states", "output_past", "return_dict",
        "use_return_dict", "use_cache", "chunk_size_feed_forward", "gradient_checkpointing",
        "initializer_range", "initializer_factor", "cross_attention_hidden_size",
        "tie_encoder_decoder", "tie_word_embeddings", "problem_type",
        # Of tokenizers, labels and tasks.
        "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id",
        "mask_token_id", "unk_token_id", "tokenizer_class", "prefix", "label2id", "_num_labels",
        "finetuning_task", "task_specific_params", "sentence_transformers",
        "sbert_ce_default_activation_function",
    ),
)  # fmt: skip


def table_of(tables: Mapping[str, Keys], config: Mapping[str, Any]) -> Keys:
    """The table for a config's `model_type`; the family's first one where it names another."""
    name = str(config.get("model_type")).replace("-", "_")
    return tables.get(name, next(iter(tables.values())))


def without(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The config without the keys of these names; `text_config.x` is the key x inside."""
    kept = dict(config)
    for name in names:
        first, _, rest = name.partition(".")
        if rest and isinstance(kept.get(first), Mapping):
            kept[first] = without(kept[first], [rest])
        elif name in kept:
            del kept[name]
        else:
            raise MmflaxError(
                f"may_ignore_keys has {name!r}, which the config.json does not have"
                f"{nearest(name, kept)}; take it out."
            )
    return kept


def checked(
    config: Mapping[str, Any], keys: Keys, source: str, family: str, inside: str = ""
) -> None:
    """Raises for a key that is not known and for a value that the family cannot build.

    Args:
      config: what the file holds.
      keys: its table.
      source: the file, for the messages.
      family: the family's name, for the messages.
      inside: where `config` lies in the file, such as "text_config.".
    """
    for name in sorted(config):
        value, where = config[name], f"{source}: {inside}{name} is {_shown(config[name])}"
        key, accepted = keys.key(name), keys.accepted(name)
        part = name if name in keys.parts else name.removesuffix("_dict")
        if key is not None:
            if not key.kind.accepts(value) and not (value is None and key.default is None):
                raise MmflaxError(f"{where}; expected {key.kind.expected}.")
        elif accepted is not None:
            if not any(value == other and type(value) is type(other) for other in accepted):
                expected = " or ".join(map(_shown, accepted))
                raise MmflaxError(
                    f"{where}, and the family {family} builds {expected} only; this checkpoint "
                    "needs a family of your own (family=)."
                )
        elif part in keys.parts and (name == part or part in keys.older):
            if value is not None and not isinstance(value, Mapping):
                raise MmflaxError(f"{where}; expected an object, the config of a part.")
            overridden = part in keys.older and config.get(f"{part}_dict") is not None
            if value is not None and not (name == part and overridden):
                checked(value, keys.parts[part], source, family, f"{inside}{name}.")
        elif name not in keys.names():
            raise MmflaxError(
                f"{where}, a key that the family {family} does not know"
                f"{nearest(name, keys.names())}; if the model's outputs do not depend on it, take "
                f"it out of that file or give from_pretrained may_ignore_keys=['{inside}{name}']."
            )
    _check_together(completed(config, keys), keys, f"{source}: {inside}")


def _check_together(values: Mapping[str, Any], keys: Keys, where: str) -> None:
    """Raises for values that are right alone and wrong together."""
    size, heads = keys.divisible
    both = size in keys.used and heads in keys.used
    if both and None not in (values[size], values[heads]) and values[size] % values[heads]:
        raise MmflaxError(
            f"{where}{size} is {values[size]}, which {heads} {values[heads]} does not divide; "
            "expected a multiple."
        )
    if "image_size" in keys.used and "patch_size" in keys.used:
        image, patch = values["image_size"], values["patch_size"]
        least = image if isinstance(image, int) else min(image)
        most = patch if isinstance(patch, int) else max(patch)
        if least < most:
            raise MmflaxError(
                f"{where}image_size is {_shown(image)}, less than patch_size, {_shown(patch)}; "
                "expected at least one patch."
            )
    lengths = {name: len(values[name]) for name in keys.equally_long}
    if len({*lengths.values()}) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise MmflaxError(
            f"{where}{next(iter(lengths))} and other lists have different lengths ({found}); "
            "expected an entry for each stage in each."
        )


def _shown(value: Any) -> str:
    """A value as its file writes it, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def completed(config: Mapping[str, Any], keys: Keys) -> dict[str, Any]:
    """The config with the original's defaults for what it leaves out, also inside its parts."""
    used = {**COMMON.used, **keys.used}
    full = {name: key.default for name, key in used.items()} | dict(config)
    for name, key in used.items():
        # JSON writers shorten 1.0 to 1.
        if key.kind in (EPSILON, RATE, POSITIVE) and isinstance(full[name], int):
            full[name] = float(full[name])
    for name, part in keys.parts.items():
        older = config.get(f"{name}_dict") if name in keys.older else None
        given = config.get(name) if older is None else older
        full[name] = completed(given or {}, part)
    return full
