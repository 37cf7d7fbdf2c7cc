"""Random mutations of a config.json: a key dropped, null, another value, or one that is added."""

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Path = tuple[str, ...]
DROPPED = "(dropped)"
ACTIVATIONS = (
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "relu",
    "silu",
    "swish",
    "tanh",
)
# Keys that some version of transformers writes or reads into any config, and values they may have.
COMMON: Mapping[str, tuple[Any, ...]] = dict(
    is_decoder=(True, False, None),
    add_cross_attention=(True, False),
    cross_attention_hidden_size=(None, 8),
    position_embedding_type=("absolute", "relative_key", "relative_key_query", None),
    chunk_size_feed_forward=(0, 2),
    pruned_heads=({}, {"0": [0]}),
    tie_word_embeddings=(True, False, None),
    tie_encoder_decoder=(False, True),
    is_encoder_decoder=(False, True),
    hidden_act=ACTIVATIONS,
    layer_norm_eps=(1e-3, 1e-12, None),
    hidden_dropout_prob=(0.0, 0.5),
    num_labels=(2, 3),
    id2label=({"0": "a"}, None),
    problem_type=(None, "regression"),
    use_cache=(True, False),
    use_return_dict=(True,),
    torchscript=(False, True),
    torch_dtype=("float32", "float16"),
    gradient_checkpointing=(False, True),
    use_bfloat16=(False,),
    output_past=(True,),
    classifier_dropout=(None, 0.1),
    pad_token_id=(None, 0, 1, 3),
    temperature=(1.0, 2.0),
    top_k=(50,),
    _name_or_path=("", "somewhere"),
    vocab_size=(30, 31),
    initializer_range=(0.02,),
    projection_dim=(8, 12),
    num_channels=(3, 1),
    hidden_activation=("relu",),
    rope_theta=(10000.0,),
    unheard_of=(None, True, 3),
)  # fmt: skip
# Keys whose other value makes the file one of another class, which is not what is compared here.
OTHER_CLASS = {("model_type",), ("architectures",)}


class Mutation(NamedTuple):
    """Key paths and their new values; `DROPPED` takes the key away."""

    changes: tuple[tuple[Path, Any], ...]

    def __str__(self) -> str:
        return ", ".join(f"{'.'.join(path)} = {value!r}" for path, value in self.changes)

    def names(self, paths: Container[Path]) -> bool:
        """Whether one of these keys is among the changed ones."""
        return any(path in paths for path, _ in self.changes)

    def known(self, config: Mapping[str, Any]) -> bool:
        """Whether the config has every changed key."""
        paths = {path for path, _ in leaves(config)}
        return all(path in paths for path, _ in self.changes)

    def invalid(self, config: Mapping[str, Any]) -> bool:
        """Whether a changed key has a value of another JSON type than the config's own, or is not
        above 0 where that is a whole number above 0, or below 0 where that is not."""
        own = dict(leaves(config))
        return any(
            value is not DROPPED
            and path in own
            and (_retyped(own[path], value) or _too_low(own[path], value))
            for path, value in self.changes
        )

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        changed = copy.deepcopy(dict(config))
        for path, value in self.changes:
            node = changed
            for name in path[:-1]:
                node = node.get(name)
                if not isinstance(node, dict):
                    break
            else:
                if value is DROPPED:
                    node.pop(path[-1], None)
                else:
                    node[path[-1]] = copy.deepcopy(value)
        return changed


def _retyped(own: Any, value: Any) -> bool:
    return type(value) is not type(own) and (type(own), type(value)) != (float, int)


def _too_low(own: Any, value: Any) -> bool:
    """Of values of one type."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return value <= 0 < own if isinstance(own, int) else value < 0 <= own


def leaves(config: Mapping[str, Any], root: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every key, those of parts (dicts of a config's own keys) too, and its value."""
    for key, value in config.items():
        yield (*root, key), value
        if isinstance(value, dict) and key.endswith("_config"):
            yield from leaves(value, (*root, key))


def others(path: Path, value: Any) -> list[Any]:
    """Values that stand in place of this one: of its type, near and far, and of other types."""
    if path in OTHER_CLASS:
        return [DROPPED, None, 3]
    if isinstance(value, bool):
        found = [not value, not value, int(value), int(not value), "false", [value]]
    elif isinstance(value, int):
        more = [value + 1, value - 1, 2 * value, value // 2, 0, -1, 3]
        found = [*more, float(value), value + 0.5, str(value), [value], [value, value], True]
    elif isinstance(value, float):
        found = [value * 10, value / 2, value + 0.25, 0.0, 1.0, 1, str(value), [value], False]
    elif isinstance(value, str):
        acts = "act" in path[-1]
        found = [*(ACTIVATIONS if acts else ()), "other", "", value.upper(), 1, [value], True]
        if path[-1] == "link_tower_type":
            found += ["add", "scaled_add", "interpolate"]
    elif isinstance(value, list):
        found = [value[:-1], value[::-1], [*value, *value[-1:]], [], 1, "x", {"0": 1}]
        if value and isinstance(value[0], int) and not isinstance(value[0], bool):
            found += [[x + 1 for x in value], [2 * x for x in value]]
    elif isinstance(value, dict):
        found = [{}, [], 1, "x", dict(list(value.items())[:-1])]
    else:
        found = [True, False, 0, 1, 2, 0.1, "x", [1]]
    return [DROPPED, DROPPED, None, None, *found]


def mutations(config: Mapping[str, Any], seed: Sequence[int], count: int) -> Iterator[Mutation]:
    """Random ones, one key at a time or two; the first changes nothing."""
    rng = np.random.default_rng(seed)
    keys = list(leaves(config))
    roots = [
        (),
        *(path for path, value in keys if isinstance(value, dict) and path[-1].endswith("_config")),
    ]
    yield Mutation(())
    for _ in range(count - 1):
        changes = []
        for _ in range(1 + int(rng.random() < 0.2)):
            if rng.random() < 0.2:
                key = list(COMMON)[rng.integers(len(COMMON))]
                root = roots[rng.integers(len(roots))]
                values = COMMON[key]
                changes.append(((*root, key), values[rng.integers(len(values))]))
            else:
                path, value = keys[rng.integers(len(keys))]
                values = others(path, value)
                changes.append((path, values[rng.integers(len(values))]))
        yield Mutation(tuple(changes))
