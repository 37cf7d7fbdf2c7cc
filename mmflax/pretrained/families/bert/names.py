"""Names of BERT's checkpoints (transformers' BertModel and its heads)."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.rules import COPY, FLAT, LINEAR, LINEAR_OUT, Rule, Shape, Table, under

MODEL_TYPES = ("bert",)

PREFIX = "bert."


def dense(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A Linear with its bias."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", LINEAR),
        Rule(f"{theirs}.bias", f"{ours}/bias", COPY),
    )


def norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A LayerNorm; before 2019 its weight and bias were called gamma and beta."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/scale"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
        Rule(f"{theirs}.gamma", f"{ours}/scale"),
        Rule(f"{theirs}.beta", f"{ours}/bias"),
    )


def attention(query: str, key: str, value: str, out: str, ours: str) -> tuple[Rule, ...]:
    """Four Linears by their names, and our attention."""
    rows = [
        row
        for name, theirs in (("query", query), ("key", key), ("value", value))
        for row in (
            Rule(f"{theirs}.weight", f"{ours}/{name}/kernel", LINEAR),
            Rule(f"{theirs}.bias", f"{ours}/{name}/bias", FLAT),
        )
    ]
    rows.append(Rule(f"{out}.weight", f"{ours}/out/kernel", LINEAR_OUT))
    rows.append(Rule(f"{out}.bias", f"{ours}/out/bias"))
    return tuple(rows)


def bert_attention(theirs: str, ours: str, inner: str = "self") -> tuple[Rule, ...]:
    """BERT's attention with its norm: `theirs` holds `self` (or `inner`) and `output`."""
    part = f"{theirs}.{inner}"
    return (
        *attention(f"{part}.query", f"{part}.key", f"{part}.value", f"{theirs}.output.dense", ours),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}_norm"),
    )


def bert_mlp(theirs: str, ours: str) -> tuple[Rule, ...]:
    """`intermediate` and `output` of a layer."""
    dot = f"{theirs}." if theirs else ""
    return (
        *dense(f"{dot}intermediate.dense", f"{ours}mlp/fc1"),
        *dense(f"{dot}output.dense", f"{ours}mlp/fc2"),
        *norm(f"{dot}output.LayerNorm", f"{ours}mlp_norm"),
    )


def bert_layer(theirs: str, ours: str) -> tuple[Rule, ...]:
    """One encoder layer; `ours` ends in "/"."""
    return (*bert_attention(f"{theirs}.attention", f"{ours}attention"), *bert_mlp(theirs, ours))


def word_head(transform: str, kernel: str, bias: str, ours: str = "word_head") -> tuple[Rule, ...]:
    """Our `MLMHead`: dense and norm under `transform`, and the words' kernel (untied) and bias."""
    return (
        *dense(f"{transform}.dense", f"{ours}/dense"),
        *norm(f"{transform}.LayerNorm", f"{ours}/norm"),
        Rule(kernel, f"{ours}/kernel", LINEAR),
        Rule(bias, f"{ours}/bias"),
    )


TABLES = (
    Rule("embeddings.word_embeddings.weight", "word_embedding/embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding/embedding"),
    Rule("embeddings.token_type_embeddings.weight", "token_type_embedding/embedding"),
)


def words(names: Collection[str]) -> str:
    """Whose table `mlm_score` compares with: its "own" where a file has one, as transformers does
    whatever the config says, or that of the words, to which it is "tied"; or "none"."""
    if "mlm_score.transform.dense.weight" not in names:
        return "none"
    return "own" if "mlm_score.decoder.weight" in names else "tied"


# Of the bare model: transformers' BertModel, and our encoder `bert`.
ENCODER = (
    *TABLES,
    *norm("embeddings.LayerNorm", "embedding_norm"),
    *bert_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *dense("pooler.dense", "pooler/dense"),
)


def encoder_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json` of the BERT family."""
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


def activation(name: str) -> str:
    """Our name of transformers' activation; another one is left to our error message."""
    return {
        "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python": "gelu",
        "silu": "swish",
    }.get(name, name)  # fmt: skip


def has(names: Collection[str], end: str) -> bool:
    """Whether a tensor's name ends so."""
    return any(name.endswith(end) for name in names)


def count(names: Collection[str], pattern: str) -> int:
    """How many numbers the names have at this place of the regex, from their start."""
    return len({found.group(1) for name in names if (found := re.match(pattern, name))})


def heads_of(width: int, family: str) -> int:
    """The heads of a layer, which shapes do not tell: 64 wide, as published models have them."""
    if width % 64:
        raise MmflaxError(
            f"the checkpoint is {family}'s, {width} wide, which is not a multiple of 64 as the "
            "published ones are, so its number of heads is unknown; put the model's config.json "
            "beside it."
        )
    return width // 64


def recognised_text(shapes: Mapping[str, Shape], prefix: str, family: str) -> dict[str, Any]:
    """What the shapes of a BERT's tables and first layer tell of its config, under `prefix`."""
    words = shapes[f"{prefix}embeddings.word_embeddings.weight"]
    return dict(
        vocab_size=words[0],
        hidden_size=words[1],
        num_attention_heads=heads_of(words[1], family),
        intermediate_size=shapes[f"{prefix}encoder.layer.0.intermediate.dense.weight"][0],
        max_position_embeddings=shapes[f"{prefix}embeddings.position_embeddings.weight"][0],
        type_vocab_size=shapes[f"{prefix}embeddings.token_type_embeddings.weight"][0],
        num_hidden_layers=count(shapes, re.escape(prefix) + r"encoder\.layer\.(\d+)\."),
    )


def count_labels(config: Mapping[str, Any]) -> int:
    """Classes of a head, as transformers counts them."""
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


def classifier(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the classifier that a file has: over the pooled vector, or over every token."""
    if "classifier.weight" not in names:
        return {}
    tokens = any(str(x).endswith("TokenClassification") for x in config.get("architectures") or ())
    pooled = has(names, "pooler.dense.weight") and not tokens
    return dict(labels=count_labels(config), classifier="pooled" if pooled else "tokens")


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    return dict(
        name="bert",
        text_encoder=encoder_fields(config),
        pooler=has(names, "pooler.dense.weight"),
        word_head=has(names, "cls.predictions.bias"),
        **classifier(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a BERT checkpoint, with or without the prefix `bert.`."""
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    return Table(
        rules=(
            *under(prefix, "text_encoder/", ENCODER),
            *dense("cls.predictions.transform.dense", "word_head/dense"),
            *norm("cls.predictions.transform.LayerNorm", "word_head/norm"),
            Rule("cls.predictions.bias", "word_head/bias"),
            *dense("classifier", "classifier"),
        ),
        tied=(
            ("cls.predictions.decoder.weight", f"{prefix}embeddings.word_embeddings.weight"),
            ("cls.predictions.decoder.bias", "cls.predictions.bias"),
        ),
        unused=(r"embeddings\.position_ids$", r"^cls\.seq_relationship\."),
    )
