"""Reading the files of a published tokenizer: vocabulary, special tokens, rules.

`tokenizer.json` is read as it stands, but for the switches that `tokenizer_config.json` overrules,
as transformers 5 does: it builds the tokenizers of known classes anew from their vocabulary.
Directories from before that file have `vocab.txt`, `vocab.json` with `merges.txt`, or
`spiece.model`; see `tokenizer_legacy`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken

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
_CASED = ("uniter",)  # BERT's tokenizer on a vocabulary with capitals
# What is written again beside a tokenizer.json.
_KEPT = (
    "model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
    "add_prefix_space", "truncation_side", "model_input_names", "keep_accents", "extra_ids",
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
    model_type = family(read_json(root / MODEL_CONFIG)) if path.is_dir() else ""
    class_name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    kind = _CLASSES.get(class_name, "") if class_name else _MODELS.get(model_type, "")
    if "added_tokens_decoder" not in config:  # else the map is older than the config
        config |= read_json(root / SPECIAL)
    if model_type in _CASED:
        config.setdefault("do_lower_case", False)
    if config.get("padding_side", "right") != "right":
        raise MmflaxError(
            f"{root} pads on the {config['padding_side']}, and models here expect padding on the "
            f"right; change padding_side in its {CONFIG}."
        )
    backend, kind = _backend(path, root, kind, config)
    tokens = special.named(config, kind)
    _add_tokens(backend, root, config, [token for token in tokens.values() if token])
    data = json.loads(backend.to_str())
    roles: dict[str, int | None] = dict.fromkeys(special.ROLES)
    if not kind:
        roles = special.roles_of(backend, data)
    for role, token in tokens.items():
        if token is not None and (index := backend.token_to_id(token)) is not None:
            roles[role] = index
    template = special.template_of_kind(kind, roles) or special.template_of(data["post_processor"])
    siglip = None
    if kind == "siglip":
        added = {token["content"]: token["id"] for token in data["added_tokens"]}
        lowercase = bool(config.get("do_lower_case", True))
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
        template=special.checked_template(roles, template, str(root)),
        siglip=siglip,
        reads_padding=reads_padding,
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
    path: epath.Path, root: epath.Path, kind: str, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    file = root / JSON if path.is_dir() else path
    # transformers tokenizes SigLIP's texts by the SentencePiece file alone.
    if file.exists() and not (kind == "siglip" and (root / SPIECE).exists()):
        return _from_json(file, kind, config), kind
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


def _from_json(path: epath.Path, kind: str, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer with the switches of `config` in place of its own."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if kind == "bert":
            old = data["normalizer"] or {}
            old = old if old.get("type") == "BertNormalizer" else {}
            data["normalizer"] = {"type": "BertNormalizer", **legacy.bert_switches(config, old)}
        if kind == "roberta" and "add_prefix_space" in config:
            section = data["pre_tokenizer"] or {}
            for part in section.get("pretokenizers", [section]):
                if part.get("type") == "ByteLevel":
                    part["add_prefix_space"] = bool(config["add_prefix_space"])
        return tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the Rust side raises a bare Exception
        raise MmflaxError(f"{path} is not a readable {JSON}: {error}.") from error


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
