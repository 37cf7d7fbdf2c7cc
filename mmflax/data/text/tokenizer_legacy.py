"""Tokenizers from files older than tokenizer.json: a vocabulary and the rules of its class."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from mmflax.data.text import sentencepiece
from mmflax.errors import MmflaxError

_CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def bert_switches(config: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of BERT's normalizer, as tokenizer.json has them; `config` overrides `default`."""
    chinese = default.get("handle_chinese_chars", True)
    return {
        "clean_text": default.get("clean_text", True),
        "handle_chinese_chars": config.get("tokenize_chinese_chars", chinese),
        "strip_accents": config.get("strip_accents", default.get("strip_accents")),
        "lowercase": config.get("do_lower_case", default.get("lowercase", True)),
    }


def from_vocabulary(
    path: epath.Path, config: Mapping[str, Any], unknown: str
) -> tokenizers.Tokenizer:
    """WordPiece from the lines of a `vocab.txt`; the id is the line, the last of equal ones."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    words = {line.rstrip(): index for index, line in enumerate(lines)}
    backend = tokenizers.Tokenizer(models.WordPiece(words, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(**bert_switches(config, {}))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def from_merges(
    vocabulary: epath.Path, merges: epath.Path, kind: str, config: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, str]:
    """Byte-level BPE from `vocab.json` and `merges.txt`, and its kind: `clip` or `roberta`."""
    try:
        words = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").replace("\r", "").split("\n")
        pairs = [
            tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")
        ]
        if not kind:
            kind = "clip" if any(word.endswith("</w>") for word in words) else "roberta"
        clip = kind == "clip"
        model = models.BPE(
            words,
            pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>" if clip else "",
            unk_token="<|endoftext|>" if clip else None,
        )
    except Exception as error:  # the Rust side raises a bare Exception
        raise MmflaxError(f"{vocabulary} and {merges.name} cannot be used: {error}.") from error
    backend = tokenizers.Tokenizer(model)
    space = kind == "roberta" and bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    backend.decoder = decoders.ByteLevel()
    if clip:
        backend.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        split = pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, backend.pre_tokenizer])
    return backend, kind


def from_spiece(
    path: epath.Path, kind: str, config: Mapping[str, Any], named: Collection[str | None]
) -> tokenizers.Tokenizer:
    """Unigram from a `spiece.model` of ALBERT, SigLIP or T5; `named` are the special tokens.

    Byte fallback is the file's, as in SentencePiece; transformers leaves it out of T5 and ALBERT.
    """
    if kind not in ("albert", "siglip", "t5"):
        raise MmflaxError(
            f"{path} belongs to a tokenizer of an unknown class, and the file alone does not say "
            "how texts are cleaned; save the tokenizer with transformers, which writes a "
            "tokenizer.json."
        )
    model = sentencepiece.parse(path.read_bytes(), str(path))
    words = [(piece.text, piece.score) for piece in model.pieces]
    first: list[normalizers.Normalizer] = []
    if kind == "t5":
        words += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(config.get("extra_ids", 100)))]
    if kind == "albert":
        first = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
        if not config.get("keep_accents", False):
            first += [normalizers.NFKD(), normalizers.StripAccents()]
        if config.get("do_lower_case", True):
            first.append(normalizers.Lowercase())
    if model.charsmap:
        first.append(normalizers.Precompiled(model.charsmap))
    backend = tokenizers.Tokenizer(models.Unigram(words, model.unk_id, model.byte_fallback))
    if first:
        backend.normalizer = normalizers.Sequence(first)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    if model.byte_fallback:
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])
    own = [piece for piece in model.pieces if piece.kind == sentencepiece.USER_DEFINED]
    if kind == "siglip" and own:
        raise MmflaxError(
            f"{path} has user-defined symbols ({own[0].text!r}), which SigLIP's tokenizer is not "
            "expected to have; save the tokenizer with transformers as a tokenizer.json."
        )
    if kind != "siglip":
        control = [piece for piece in model.pieces if piece.kind == sentencepiece.CONTROL]
        for piece in (*control, *own):
            special = piece in control or piece.text in named
            backend.add_tokens([AddedToken(piece.text, normalized=False, special=special)])
    if kind == "t5":
        backend.add_special_tokens([word for word, _ in words[len(model.pieces) :]])
    return backend
