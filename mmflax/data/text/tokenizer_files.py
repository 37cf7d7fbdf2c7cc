"""What the files of a published tokenizer say: its words, its special tokens, and its rules.

`tokenizer.json` is read as it stands, but for the switches that `tokenizer_config.json` overrules,
as transformers 5 does it: it builds the tokenizers of known classes anew from their vocabulary.
Directories from before that file have `vocab.txt`, `vocab.json` with `merges.txt`, or
`spiece.model`; see `tokenizer_legacy`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from etils import epath
from tokenizers import AddedToken

from mmflax.data.text import tokenizer_legacy as legacy
from mmflax.data.text.sentencepiece import SiglipText
from mmflax.data.text.special_tokens import (
    TEXT,
    Frame,
    bert_frame,
    ending_frame,
    frame_of,
    roberta_frame,
)
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
ROLES = ("pad", "unk", "cls", "sep", "mask")
_CASED = ("uniter",)  # BERT's tokenizer on a vocabulary with capitals
# The special tokens of a kind, where the files name none.
_NAMES = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
    "clip": ("<|endoftext|>", "<|endoftext|>", "<|startoftext|>", "<|endoftext|>", None),
    "siglip": ("</s>", "<unk>", None, "</s>", None),
    "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "t5": ("<pad>", "<unk>", None, "</s>", None),
}
_KEYS = {role: (f"{role}_token",) for role in ROLES} | {
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
}
# What is written again beside a tokenizer.json.
_KEPT = (
    "model_max_length", "do_lower_case", "strip_accents", "tokenize_chinese_chars",
    "add_prefix_space", "truncation_side", "model_input_names", "keep_accents", "extra_ids",
)  # fmt: skip


class Found(NamedTuple):
    """A tokenizer as its files describe it.

    Attributes:
      backend: splits texts into words and pieces.
      kind: bert, roberta, clip, siglip, albert, t5, or "" for another.
      roles: the id of every role; None where the family has no such token.
      frame: what stands around a text.
      siglip: replaces the backend's way from a text to ids.
      reads_padding: the model was trained without a mask.
      keeps_end: a text that is too long loses its beginning.
      max_length: the longest text with its special tokens, where the files say it.
      config: the tokenizer_config.json to write beside a tokenizer.json.
    """

    backend: tokenizers.Tokenizer
    kind: str
    roles: Mapping[str, int | None]
    frame: Frame
    siglip: SiglipText | None = None
    reads_padding: bool = False
    keeps_end: bool = False
    max_length: int | None = None
    config: Mapping[str, Any] | None = None


def is_published(path: epath.Path) -> bool:
    """Whether more than a tokenizer.json of ours is to be read."""
    return path.is_dir() or any((path.parent / name).exists() for name in (CONFIG, SPECIAL))


def read(path: epath.Path) -> Found:
    """Reads a directory, or a tokenizer.json with the tokenizer_config.json beside it.

    Raises:
      MmflaxError: there is no tokenizer, it is damaged, or it does not say what is needed.
    """
    root = path if path.is_dir() else path.parent
    names = read_json(root / CONFIG)
    model_type = family(read_json(root / MODEL_CONFIG)) if path.is_dir() else ""
    class_name = str(names.get("tokenizer_class") or "").removesuffix("Fast")
    kind = _CLASSES.get(class_name, "") if class_name else _MODELS.get(model_type, "")
    if "added_tokens_decoder" not in names:  # else the map is older than the config
        names |= read_json(root / SPECIAL)
    if model_type in _CASED:
        names.setdefault("do_lower_case", False)
    if names.get("padding_side", "right") != "right":
        raise MmflaxError(
            f"{root} pads on the {names['padding_side']}, and models here expect padding on the "
            f"right; change padding_side in its {CONFIG}."
        )
    backend, kind = _backend(path, root, kind, names)
    _add_tokens(backend, root, names, kind)
    data = json.loads(backend.to_str())
    named = {
        role: index
        for role, word in _words(names, kind).items()
        if word is not None and (index := backend.token_to_id(word)) is not None
    }
    start: dict[str, int | None] = dict.fromkeys(ROLES) if kind else _roles(backend, data)
    roles = start | named
    frame = checked_frame(roles, _frame(kind, roles) or frame_of(data["post_processor"]), str(root))
    reads_padding = bool(names.get("reads_padding", "siglip" in (kind, model_type)))
    longest = names.get("model_max_length")
    return Found(
        backend=backend,
        kind=kind,
        roles=roles,
        frame=frame,
        siglip=_siglip(data, roles, names) if kind == "siglip" else None,
        reads_padding=reads_padding,
        keeps_end=names.get("truncation_side", "right") == "left",
        max_length=int(longest) if longest and longest < _LONGEST else None,
        config=_config(backend, kind or class_name, roles, names, reads_padding),
    )


def alone(backend: tokenizers.Tokenizer) -> Found:
    """A tokenizer.json that has no other file beside it."""
    data = json.loads(backend.to_str())
    roles = _roles(backend, data)
    if data["model"]["type"] == "WordPiece":
        needed = _NAMES["bert"]
        missing = [word for word in needed if word and backend.token_to_id(word) is None]
        if missing:
            raise MmflaxError(
                f"The tokenizer's vocabulary has no {', '.join(missing)}; a WordPiece vocabulary "
                f"with {' '.join(map(str, needed))} is needed."
            )
    frame = checked_frame(roles, frame_of(data["post_processor"]), "The tokenizer.json")
    return Found(backend, "bert" if data["model"]["type"] == "WordPiece" else "", roles, frame)


def _siglip(
    data: Mapping[str, Any], roles: Mapping[str, int | None], names: Mapping[str, Any]
) -> SiglipText:
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    lowercase = bool(names.get("do_lower_case", True))
    return legacy.siglip_text(data, added, int(roles["unk"] or 0), lowercase)


def _config(
    backend: tokenizers.Tokenizer,
    kind: str,
    roles: Mapping[str, int | None],
    names: Mapping[str, Any],
    reads_padding: bool,
) -> dict[str, Any]:
    """A tokenizer_config.json that says all of this beside the backend's tokenizer.json."""
    classes = {one: name for name, one in reversed(_CLASSES.items())}
    written = {key: names[key] for key in _KEPT if key in names}
    if kind:
        written["tokenizer_class"] = classes.get(kind, kind)
    if reads_padding:
        written["reads_padding"] = True
    for role, index in roles.items():
        if index is not None:
            written[_KEYS[role][0]] = backend.id_to_token(index)
    return written


def checked_frame(roles: Mapping[str, int | None], frame: Frame | None, source: str) -> Frame:
    """The frame, else BERT's; raises MmflaxError where a text could not be framed or padded."""
    if frame is None and roles["cls"] is not None and roles["sep"] is not None:
        frame = bert_frame(roles["cls"], roles["sep"])
    if frame is None or roles["pad"] is None:
        lack = "which tokens begin and end a text" if frame is None else "which token pads a text"
        raise MmflaxError(
            f"{source} does not say {lack}; put the {CONFIG} that belongs to it beside it, with "
            "pad_token, cls_token and sep_token."
        )
    return frame


def family(config: Mapping[str, Any]) -> str:
    """The `model_type` of a model's config, the same for a whole model and its half."""
    name = str(config.get("model_type") or "").replace("-", "_")
    return name.removesuffix("_text_model").removesuffix("_vision_model")


def read_json(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MmflaxError(f"{path} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise MmflaxError(f"{path} holds {type(found).__name__}, not an object.")
    return found


def _backend(
    path: epath.Path, root: epath.Path, kind: str, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    file = root / JSON if path.is_dir() else path
    # transformers tokenises SigLIP's texts by the SentencePiece file alone.
    if file.exists() and not (kind == "siglip" and (root / SPIECE).exists()):
        return _from_json(file, kind, config), kind
    if (root / VOCABULARY).exists():
        unknown = _words(config, "bert")["unk"]
        backend = legacy.from_vocabulary(root / VOCABULARY, str(unknown))
        return _overruled(json.loads(backend.to_str()), "bert", config), "bert"
    if (root / BPE_VOCABULARY).exists() and (root / MERGES).exists():
        backend, kind = legacy.from_merges(root / BPE_VOCABULARY, root / MERGES, kind)
        return _overruled(json.loads(backend.to_str()), kind, config), kind
    if (root / SPIECE).exists():
        named = _words(config, kind).values()
        return legacy.from_spiece(root / SPIECE, kind, config, named), kind
    raise MmflaxError(
        f"There is no tokenizer in {root}; expected {JSON}, {VOCABULARY}, {BPE_VOCABULARY} with "
        f"{MERGES}, or {SPIECE}."
    )


def _from_json(path: epath.Path, kind: str, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    try:
        return _overruled(json.loads(path.read_text(encoding="utf-8")), kind, config)
    except Exception as error:  # the Rust side raises a bare Exception
        raise MmflaxError(f"{path} is not a readable {JSON}: {error}.") from error


def _overruled(data: dict[str, Any], kind: str, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer with the switches of `config` in place of its own."""
    if kind == "bert":
        old = data["normalizer"] or {}
        data["normalizer"] = legacy.bert_normalizer(
            config, old if old.get("type") == "BertNormalizer" else {}
        )
    if kind == "roberta" and "add_prefix_space" in config:
        for one in _sections(data["pre_tokenizer"]):
            if one["type"] == "ByteLevel":
                one["add_prefix_space"] = bool(config["add_prefix_space"])
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _sections(section: dict[str, Any] | None) -> Sequence[dict[str, Any]]:
    if section is None:
        return ()
    return section["pretokenizers"] if section["type"] == "Sequence" else (section,)


def _add_tokens(
    backend: tokenizers.Tokenizer, root: epath.Path, names: Mapping[str, Any], kind: str
) -> None:
    """Marks the special tokens, and adds the words that the files list beside the vocabulary.

    Raises:
      MmflaxError: an added word would be given another id than the files say.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    special = [value for value in _words(names, kind).values() if value]
    extra = names.get("additional_special_tokens") or names.get("extra_special_tokens") or ()
    extra = tuple(extra.values() if isinstance(extra, Mapping) else extra)
    listed = names.get("added_tokens_decoder")
    if listed is None:
        added = read_json(root / ADDED).items()
        listed = {i: {"content": w, "special": w in (*special, *extra)} for w, i in added}
    for index, token in sorted((int(i), _added(value)) for i, value in listed.items()):
        if token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)
        if backend.token_to_id(token.content) != index:
            raise MmflaxError(
                f"{root} gives {token.content!r} the id {index}, but its vocabulary gives it "
                f"{backend.token_to_id(token.content)}; check that its files belong together."
            )
    given = [names[key] for keys in _KEYS.values() for key in keys if names.get(key)]
    for place, value in enumerate((*extra, *given, *special)):
        token = _added({"content": value} if isinstance(value, str) else value, special=True)
        # A role's name that the vocabulary lacks would be a word that the model lacks.
        wanted = place < len(extra) or backend.token_to_id(token.content) is not None
        if wanted and token.content not in known:
            backend.add_tokens([token])
            known.add(token.content)


def _added(value: Mapping[str, Any], special: bool = False) -> AddedToken:
    kind = special or bool(value.get("special", False))
    switches = {key: bool(value.get(key, False)) for key in ("lstrip", "rstrip", "single_word")}
    normalized = bool(value.get("normalized", not kind))
    return AddedToken(value["content"], special=kind, normalized=normalized, **switches)


def _words(names: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """The token of every role: as the files name it, else as its kind has it."""
    words: dict[str, str | None] = dict(zip(ROLES, _NAMES.get(kind, (None,) * 5), strict=True))
    for role, keys in _KEYS.items():
        given = next((names[key] for key in keys if names.get(key)), None)
        if given is not None:
            words[role] = given["content"] if isinstance(given, Mapping) else str(given)
    return words


def _roles(backend: tokenizers.Tokenizer, data: Mapping[str, Any]) -> dict[str, int | None]:
    """The roles as the tokenizer.json itself shows them, or by the usual names."""

    def usual(*words: str) -> int | None:
        found = (backend.token_to_id(word) for word in words)
        return next((index for index in found if index is not None), None)

    frame = frame_of(data["post_processor"])
    around = [what for what, _ in frame.single] if frame else [TEXT]
    begin, end = around[: around.index(TEXT)], around[around.index(TEXT) + 1 :]
    unknown = data["model"].get("unk_token")
    bert = data["model"]["type"] == "WordPiece"
    return {
        "pad": usual("[PAD]" if bert else "<pad>")
        if not data["padding"]
        else data["padding"]["pad_id"],
        "unk": usual(unknown) if unknown else data["model"].get("unk_id"),
        "cls": int(begin[0]) if begin else (None if frame else usual("[CLS]", "<s>")),
        "sep": int(end[-1]) if end else (None if frame else usual("[SEP]", "</s>")),
        "mask": usual("[MASK]", "<mask>"),
    }


def _frame(kind: str, roles: Mapping[str, int | None]) -> Frame | None:
    cls, sep = roles["cls"], roles["sep"]
    if sep is not None and kind in ("siglip", "t5"):
        return ending_frame(sep)
    if sep is not None and cls is not None and kind:
        return (roberta_frame if kind in ("clip", "roberta") else bert_frame)(cls, sep)
    return None
