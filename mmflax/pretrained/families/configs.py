"""Reading the config of a checkpoint, and where there is none the shapes of its tensors."""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from mmflax.errors import MmflaxError
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    ACTIVATIONS,
    COUNT,
    EPSILON,
    RATE,
    SIZE,
    Key,
)
from mmflax.pretrained.rules import Shape

# What the layers of one transformer agree on.
LAYER_FIELDS = (
    "width", "num_heads", "mlp_dim", "activation", "epsilon", "dropout_rate",
    "attention_dropout_rate",
)  # fmt: skip
WORD_TABLE = "embeddings.word_embeddings.weight"
POSITION_TABLE = "embeddings.position_embeddings.weight"

# Which of their grids a model gives to a detector around it.
BACKBONE = ("out_features", "out_indices", "stage_names")
# What `bert_fields` reads, with the defaults of transformers' BertConfig, and the other keys that
# configs of BERT and of models made from it have (see `config_keys`).
BERT_USED = dict(
    vocab_size=Key(SIZE, 30522),
    hidden_size=Key(SIZE, 768),
    num_hidden_layers=Key(SIZE, 12),
    num_attention_heads=Key(SIZE, 12),
    intermediate_size=Key(SIZE, 3072),
    max_position_embeddings=Key(SIZE, 512),
    type_vocab_size=Key(SIZE, 2),
    hidden_act=Key(ACTIVATION, "gelu"),
    layer_norm_eps=Key(EPSILON, 1e-12),
    hidden_dropout_prob=Key(RATE, 0.1),
    attention_probs_dropout_prob=Key(RATE, 0.1),
)
ROBERTA_USED = BERT_USED | dict(vocab_size=Key(SIZE, 50265), pad_token_id=Key(COUNT, 1))
BERT_FIXED = dict(position_embedding_type=("absolute",))
# Of Google's multilingual models, of models with another table or pooler, and of TinyBERT's
# distillation, none of which transformers reads.
BERT_HARMLESS = (
    "directionality", "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers",
    "pooler_size_per_head", "pooler_type", "embedding_size", "cell", "emb_size", "pre_trained",
    "structure", "training",
)  # fmt: skip


def bert_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder `bert` for a `config.json` of the BERT family."""
    return dict(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_dim=config["intermediate_size"],
        max_length=config["max_position_embeddings"],
        num_token_types=config["type_vocab_size"],
        activation=activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout_rate=config.get("hidden_dropout_prob", 0.1),
        attention_dropout_rate=config.get("attention_probs_dropout_prob", 0.1),
        **more,
    )


def roberta_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same of RoBERTa: positions count what is no padding, from the row after the padding's."""
    pad = config.get("pad_token_id", 1)
    return bert_fields(config, position_offset=pad + 1, pad_token=pad)


def layer_fields(encoder: Mapping[str, Any], keys: Collection[str] = LAYER_FIELDS) -> dict:
    """An encoder's keywords that a fusion of its width shares."""
    return {key: encoder[key] for key in keys}


def activation(name: str) -> str:
    """Our name of transformers' activation; another one is left to our error message."""
    return ACTIVATIONS.get(name, name)


def sides(value: Any) -> Any:
    """A size as configs write it: a number, or two of them."""
    return tuple(value) if isinstance(value, list | tuple) else value


def side(value: Any) -> Any:
    """A size that has to be square here."""
    pair = sides(value)
    return pair[0] if isinstance(pair, tuple) and pair[0] == pair[1] else pair


def count_labels(config: Mapping[str, Any]) -> int:
    """Classes of a head, as transformers counts them."""
    if config.get("id2label") is not None:
        return len(config["id2label"])
    count = config.get("num_labels")
    return 2 if count is None else int(count)


def classifier_labels(config: Mapping[str, Any], names: Collection[str]) -> int:
    """Classes of the `classifier` of a file; 0 without one."""
    return count_labels(config) if "classifier.weight" in names else 0


def architecture(config: Mapping[str, Any], end: str) -> bool:
    """Whether the config names a class of transformers that ends so."""
    return any(str(name).endswith(end) for name in config.get("architectures") or ())


def has(names: Collection[str], end: str) -> bool:
    """Whether a tensor's name ends so."""
    return any(name.endswith(end) for name in names)


def count(names: Collection[str], pattern: str) -> int:
    """How many numbers the names have at this place of the regex, from their start."""
    return len({match.group(1) for name in names if (match := re.match(pattern, name))})


def prefix(names: Collection[str], start: str) -> str:
    """`start` where names have it: transformers saves a bare model without it."""
    return start if any(name.startswith(start) for name in names) else ""


def prefix_of(names: Collection[str], family: str) -> str:
    """What stands before the word table's name, or the position table's where a file stores the
    words under the tied head's name only."""
    for end in (WORD_TABLE, POSITION_TABLE):
        prefixes = sorted(name.removesuffix(end) for name in names if name.endswith(end))
        if prefixes:
            return prefixes[0]
    raise MmflaxError(f"the checkpoint has no {WORD_TABLE}; expected one of {family}.")


def word_table(config: Mapping[str, Any], names: Collection[str]) -> str:
    """Whose table `cls.predictions` multiplies with: "tied" to the words', its "own", or "none"."""
    if not has(names, "cls.predictions.transform.dense.weight"):
        return "none"
    return "tied" if config.get("tie_word_embeddings", True) else "own"


class DecoderNames(NamedTuple):
    """Of a word head: its bias's name, which tensors repeat others, and which are not read."""

    bias: str
    tied: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]


def decoder_names(
    config: Mapping[str, Any], names: Collection[str], decoder: str, bias: str, words: str
) -> DecoderNames:
    """The names of a head whose Linear `decoder` repeats the words' table and `bias`, if tied.

    Untied, the bias is the Linear's own: transformers 4 calls that `bias`, 5 keeps both names and
    reads the Linear's.
    """
    own = f"{decoder}.bias"
    if config.get("tie_word_embeddings", True):
        return DecoderNames(bias, ((f"{decoder}.weight", words), (own, bias)), ())
    if own in names:
        return DecoderNames(own, (), (f"^{re.escape(bias)}$",))
    return DecoderNames(bias, (), ())


SCORE_TABLE = "mlm_score.decoder.weight"


def score_table(names: Collection[str], words: str, tied: bool) -> str:
    """Of `mlm_score`: its "own" where a file has one beside `words`, as transformers does whatever
    the config says, or that of the words, to which it is "tied"; or "none".

    Tied, a file may store the one table under either name.
    """
    if "mlm_score.transform.dense.weight" not in names:
        return "none"
    return "own" if not tied or {SCORE_TABLE, words} <= {*names} else "tied"


def score_tied(names: Collection[str], words: str, tied: bool) -> tuple[tuple[str, str], ...]:
    """The pair of names of that one table."""
    return ((SCORE_TABLE, words),) if score_table(names, words, tied) == "tied" else ()


def heads_of(width: int, family: str) -> int:
    """The heads of a layer, which shapes do not show: 64 wide, as published models have them."""
    if width % 64:
        raise MmflaxError(
            f"the checkpoint is {family}'s, {width} wide, which is not a multiple of 64 as the "
            "published ones are, so its number of heads is unknown; put the model's config.json "
            "beside it."
        )
    return width // 64


def bert_config(shapes: Mapping[str, Shape], prefix: str, family: str) -> dict[str, Any]:
    """What the shapes of a BERT's tables and first layer show of its config, under `prefix`."""
    if prefix + WORD_TABLE not in shapes:
        raise MmflaxError(
            f"the checkpoint has no {prefix}{WORD_TABLE}, from which {family}'s sizes are read; "
            "put the model's config.json beside it."
        )
    words = shapes[prefix + WORD_TABLE]
    return dict(
        vocab_size=words[0],
        hidden_size=words[1],
        num_attention_heads=heads_of(words[1], family),
        intermediate_size=shapes[f"{prefix}encoder.layer.0.intermediate.dense.weight"][0],
        max_position_embeddings=shapes[prefix + POSITION_TABLE][0],
        type_vocab_size=shapes[f"{prefix}embeddings.token_type_embeddings.weight"][0],
        num_hidden_layers=count(shapes, re.escape(prefix) + r"encoder\.layer\.(\d+)\."),
    )
