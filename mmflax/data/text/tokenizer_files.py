"""Reading the files of a published tokenizer: vocabulary, special tokens, rules.

`tokenizer.json` is read as it stands: its normalizer, pre-tokenizer and post-processor are those of
the model's training, also where its class usually has others. As in transformers 4, the switches in
`tokenizer_config.json` (`do_lower_case`, `add_prefix_space` …) overrule those of BERT's own
normalizer and RoBERTa's own pre-tokenizer, and nothing else. A file without a post-processor adds
no special tokens where transformers 4 wrote it (it then has a list of added tokens beside it) or
where its class is a general one; else its class's are added, as transformers 5 does.

What is the model's and not the tokenizer's, such as the number of positions, goes by the family
that `config.json` names. A tokenizer of no particular class is taken for the family's.

Directories from before that file have `vocab.txt`, `vocab.json` with `merges.txt`, or
`spiece.model`; see `tokenizer_legacy`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken, normalizers

from mmflax.data.text import special_tokens as special
from mmflax.data.text import tokenizer_legacy as legacy
from mmflax.data.text.sentencepiece import SiglipText
from mmflax.data.text.special_tokens import Roles, Template
from mmflax.errors import MmflaxError

JSON, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADDED, MODEL_CONFIG = "added_tokens.json", "config.json"
VOCABULARY, BPE_VOCABULARY, MERGES, SPIECE = "vocab.txt", "vocab.json", "merges.txt", "spiece.model"
_LONGEST = 1 << 20  # transformers writes 1e30 for "no limit"

# The kind of tokenizer by its class, or by the model where no class is named.
_CLASSES = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "bert",
    "LxmertTokenizer": "bert",
    "RobertaTokenizer": "roberta",
    "CLIPTokenizer": "clip",
    "SiglipTokenizer": "siglip",
    "AlbertTokenizer": "albert",
    "T5Tokenizer": "t5",
}
_MODELS = {
    **dict.fromkeys(
        ("bert", "align", "blip", "flava", "lxmert", "uniter", "vilbert", "vilt", "visual_bert"),
        "bert",
    ),
    **dict.fromkeys(("bridgetower", "meter", "roberta"), "roberta"),
    **{name: name for name in ("albert", "clip", "siglip", "t5")},
}
# Classes that say nothing of a tokenizer; their names are written without "Fast".
_ANY_CLASS = ("", "PreTrainedTokenizer", "TokenizersBackend")
# The models whose positions begin after the row of the padding token.
_ROBERTA_LIKE = ("bridgetower", "camembert", "roberta", "xlm_roberta")
# The type of model in a tokenizer.json by kind; a file with another is of no known kind.
_ALGORITHMS = {
    "bert": "WordPiece",
    **dict.fromkeys(("clip", "roberta"), "BPE"),
    **dict.fromkeys(("albert", "siglip", "t5"), "Unigram"),
}
_CASED = ("uniter",)  # BERT's tokenizer on a vocabulary with capitals
# The keys that change how texts are read, for the classes that know them.
_SWITCHES = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space")
# Whether decoded texts lose spaces before punctuation; for BPE only where the second says so too.
_CLEANS = "clean_up_tokenization_spaces"
_CLEANS_BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
# What is written again beside a tokenizer.json.
_KEPT = (
    *_SWITCHES, "model_max_length", "truncation_side", "model_input_names", "keep_accents",
    "extra_ids", _CLEANS, _CLEANS_BPE,
)  # fmt: skip


class TokenizerFiles(NamedTuple):
    """A tokenizer with everything that its files specify.

    Attributes:
      backend: splits texts into words and pieces.
      kind: bert, roberta, clip, siglip, albert, t5, or "" for another.
      roles: the id of every role.
      template: the special tokens around a text.
      siglip: replaces the backend's way from a text to ids.
      reads_padding: the model was trained without a mask.
      cleans_up: decoded texts lose the spaces of tokenization: "don ' t ." is "don't.".
      keeps_end: a text that is too long loses its beginning.
      max_length: the longest text with its special tokens, where the files say it.
      config: the tokenizer_config.json to write beside a tokenizer.json.
    """

    backend: tokenizers.Tokenizer
    kind: str
    roles: Roles
    template: Template
    siglip: SiglipText | None = None
    reads_padding: bool = False
    cleans_up: bool = False
    keeps_end: bool = False
    max_length: int | None = None
    config: Mapping[str, Any] | None = None


def is_published(path: epath.Path) -> bool:
    """Whether there is more than a single tokenizer.json."""
    return path.is_dir() or any((path.parent / name).exists() for name in (CONFIG, SPECIAL))


def read(path: epath.Path) -> TokenizerFiles:
    """Reads a directory, or a tokenizer.json with the tokenizer_config.json beside it.

    Raises:
      MmflaxError: there is no tokenizer, it is damaged, or it does not say what is needed.
    """
    root = path if path.is_dir() else path.parent
    config = read_json(root / CONFIG)
    model_type = text_family(read_json(root / MODEL_CONFIG)) if path.is_dir() else ""
    class_name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    any_class = class_name in _ANY_CLASS
    kind = _MODELS.get(model_type, "") if any_class else _CLASSES.get(class_name, "")
    lowercase = bool(config.get("do_lower_case", True))
    by_transformers = "added_tokens_decoder" in config or (root / SPECIAL).exists()
    if "added_tokens_decoder" not in config:  # else the map is older than the config
        config |= read_json(root / SPECIAL)
    if model_type in _CASED:
        config.setdefault("do_lower_case", False)
    if any_class and class_name:  # such a class does not read them
        config = {key: value for key, value in config.items() if key not in _SWITCHES}
    if config.get("padding_side", "right") != "right":
        raise MmflaxError(
            f"{root} pads on the {config['padding_side']}, and models here expect padding on the "
            f"right; change padding_side in its {CONFIG}."
        )
    file = root / JSON if path.is_dir() else path
    # transformers tokenizes SigLIP's texts by the SentencePiece file alone.
    whole = file.exists() and not (kind == "siglip" and (root / SPIECE).exists())
    backend, kind = _from_json(file, kind, config) if whole else _backend(root, kind, config)
    if model_type == "siglip" and not kind and lowercase:
        _lowercase(backend)
    tokens = special.named(config, kind)
    _add_tokens(backend, root, config, [token for token in tokens.values() if token])
    data = json.loads(backend.to_str())
    roles: dict[str, int | None] = dict.fromkeys(special.ROLES)
    if not kind:
        roles = special.roles_of(backend, data)
    for role, token in tokens.items():
        if token is not None and (index := backend.token_to_id(token)) is not None:
            roles[role] = index
    section = data["post_processor"]
    template: Template | None
    if whole and section is not None:
        template = special.template_of(section) or special.BARE
    elif whole and (by_transformers or (any_class and class_name)):
        template = special.BARE
    else:
        template = special.template_of_kind(kind, roles)
    template = special.checked_template(roles, template, str(root))
    if section is None:
        backend.post_processor = special.post_processor(template, backend)
    siglip = None
    if kind == "siglip":
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
        siglip = SiglipText(data, added, int(roles["unk"] or 0), lowercase)
    written = {key: config[key] for key in _KEPT if key in config}
    if kind or class_name:
        classes = {one: name for name, one in reversed(_CLASSES.items())}
        written["tokenizer_class"] = classes.get(kind or class_name, kind or class_name)
    reads_padding = bool(config.get("reads_padding", "siglip" in (kind, model_type)))
    if reads_padding:
        written["reads_padding"] = True
    for role, index in roles.items():
        if index is not None:
            written[special.KEYS[role][0]] = backend.id_to_token(index)
    longest = config.get("model_max_length")
    return TokenizerFiles(
        backend=backend,
        kind=kind,
        roles=roles,
        template=template,
        siglip=siglip,
        reads_padding=reads_padding,
        cleans_up=bool(
            config.get(_CLEANS) and (data["model"]["type"] != "BPE" or config.get(_CLEANS_BPE))
        ),
        keeps_end=config.get("truncation_side", "right") == "left",
        max_length=int(longest) if longest and longest < _LONGEST else None,
        config=written,
    )


def alone(backend: tokenizers.Tokenizer) -> TokenizerFiles:
    """A tokenizer.json that has no other file beside it."""
    data = json.loads(backend.to_str())
    wordpiece = data["model"]["type"] == "WordPiece"
    needed = [token for token in special.DEFAULTS["bert"] if token]
    missing = [token for token in needed if backend.token_to_id(token) is None]
    if wordpiece and missing:
        raise MmflaxError(
            f"The tokenizer's vocabulary has no {', '.join(missing)}; a WordPiece vocabulary "
            f"with {' '.join(needed)} is needed."
        )
    roles = special.roles_of(backend, data)
    template = special.template_of(data["post_processor"])
    template = special.checked_template(roles, template, "The tokenizer.json")
    return TokenizerFiles(backend, "bert" if wordpiece else "", roles, template)


def family(config: Mapping[str, Any]) -> str:
    """The `model_type` of a model's config, the same for a whole model and its half."""
    name = str(config.get("model_type") or "").replace("-", "_")
    return name.removesuffix("_text_model").removesuffix("_vision_model")


def text_family(config: Mapping[str, Any]) -> str:
    """The family of what reads the texts: the model's, or that of its `text_config`."""
    name, part = family(config), config.get("text_config")
    if name in _MODELS or name in _ROBERTA_LIKE or not isinstance(part, Mapping):
        return name
    return family(part) or name


def position_offset(config: Mapping[str, Any], kind: str, pad: int) -> int:
    """How many rows of a model's position table stand before the first position.

    RoBERTa counts positions from the row after its padding token's, and so do the families built
    on it; whichever class its tokenizer is of.

    Args:
      config: of the model.
      kind: of the tokenizer, which decides where the family may have either (METER).
      pad: the tokenizer's padding token, where `config` names none.
    """
    name = text_family(config)
    roberta = name in _ROBERTA_LIKE or (name in ("", "meter") and kind == "roberta")
    if not roberta:
        return 0
    text = config.get("text_config") or config
    given = text.get("pad_token_id")
    return (pad if given is None else int(given)) + 1


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MmflaxError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise MmflaxError(f"{path} holds {type(content).__name__}, not an object.")
    return content


def _backend(
    root: epath.Path, kind: str, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer of the files older than tokenizer.json, and its kind."""
    if (root / VOCABULARY).exists():
        unknown = str(special.named(config, "bert")["unk"])
        return legacy.from_vocabulary(root / VOCABULARY, config, unknown), "bert"
    if (root / BPE_VOCABULARY).exists() and (root / MERGES).exists():
        return legacy.from_merges(root / BPE_VOCABULARY, root / MERGES, kind, config)
    if (root / SPIECE).exists():
        tokens = special.named(config, kind).values()
        return legacy.from_spiece(root / SPIECE, kind, config, tokens), kind
    raise MmflaxError(
        f"There is no tokenizer in {root}; expected {JSON}, {VOCABULARY}, {BPE_VOCABULARY} with "
        f"{MERGES}, or {SPIECE}."
    )


def _from_json(
    path: epath.Path, kind: str, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer with the switches of `config` in place of its own, and its kind."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["model"]["type"] != _ALGORITHMS.get(kind):
            kind = ""
        normalizer, words = data["normalizer"] or {}, data["pre_tokenizer"] or {}
        if kind == "bert" and normalizer.get("type") == "BertNormalizer":
            normalizer |= legacy.bert_switches(config, normalizer)
        if kind == "roberta" and words.get("type") == "ByteLevel":
            words["add_prefix_space"] = bool(
                config.get("add_prefix_space", words["add_prefix_space"])
            )
        return tokenizers.Tokenizer.from_str(json.dumps(data)), kind
    except Exception as error:  # the Rust side raises a bare Exception
        raise MmflaxError(f"{path} is not a readable {JSON}: {error}.") from error


def _lowercase(backend: tokenizers.Tokenizer) -> None:
    """Texts of SigLIP 2 are lower-cased before its Gemma tokenizer, which does not do it."""
    first = [normalizers.Lowercase()]
    backend.normalizer = normalizers.Sequence(
        [*first, backend.normalizer] if backend.normalizer else first
    )


def _add_tokens(
    backend: tokenizers.Tokenizer,
    root: epath.Path,
    config: Mapping[str, Any],
    roles: Sequence[str],
) -> None:
    """Marks special tokens, and adds the tokens that the files list beside the vocabulary.

    Raises:
      MmflaxError: an added word would be given another id than the files say.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or ()
    extra = tuple(extra.values() if isinstance(extra, Mapping) else extra)
    listed = config.get("added_tokens_decoder")
    if listed is None:
        added = read_json(root / ADDED).items()
        listed = {i: {"content": w, "special": w in (*roles, *extra)} for w, i in added}

    def add(token: AddedToken) -> None:
        if token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)

    for index, token in sorted((int(i), _added(value)) for i, value in listed.items()):
        add(token)
        if backend.token_to_id(token.content) != index:
            raise MmflaxError(
                f"{root} gives {token.content!r} the id {index}, but its vocabulary gives it "
                f"{backend.token_to_id(token.content)}; check that its files belong together."
            )
    for value in extra:
        add(_added(value, special=True))
    given = [config[key] for keys in special.KEYS.values() for key in keys if config.get(key)]
    for value in (*given, *roles):
        token = _added(value, special=True)
        # A role's name that the vocabulary lacks would be a word that the model lacks.
        if backend.token_to_id(token.content) is not None:
            add(token)


def _added(value: str | Mapping[str, Any], special: bool = False) -> AddedToken:
    value = {"content": value} if isinstance(value, str) else value
    special = special or bool(value.get("special", False))
    switches = {key: bool(value.get(key, False)) for key in ("lstrip", "rstrip", "single_word")}
    normalized = bool(value.get("normalized", not special))
    return AddedToken(value["content"], special=special, normalized=normalized, **switches)
