"""Text to token ids and back: WordPiece with BERT's normalization (Devlin et al. 2019, section 3).

A published tokenizer may be of any kind that ``tokenizers`` knows: WordPiece, byte-level BPE
(RoBERTa, CLIP), or Unigram (SigLIP, ALBERT, T5).
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mmflax.data.text import tokenizer_files
from mmflax.data.text.special_tokens import DEFAULTS, ROLES, share
from mmflax.data.text.wordpiece import learn_wordpieces
from mmflax.errors import MmflaxError

# Spaces that splitting into words has put in, in the order in which transformers takes them out.
_JOINED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
SPECIALS = tuple(str(token) for token in DEFAULTS["bert"])


class Tokenizer:
    """Wraps a ``tokenizers`` backend; every call is safe from several threads.

    Learned vocabularies hold the specials at 0..4; a loaded one (BERT's, say) may hold them
    anywhere, so read ``pad_id``, ``unk_id``, ``cls_id``, ``sep_id`` and ``mask_id``. All but the
    first are None where the family has no such token (CLIP has no mask, T5 no ``cls_id``).

    Attributes:
      kind: bert, roberta, clip, siglip, albert, t5, or "" for another.
      template: the special tokens around a text, or two.
      reads_padding: ``encode``'s mask is true on padding too, for models trained so (SigLIP).
      max_length: the longest text the tokenizer was published for, or None.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, files: tokenizer_files.TokenizerFiles | None = None
    ):
        files = files or tokenizer_files.alone(backend)
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self._files = files
        pad, self.unk_id, self.cls_id, self.sep_id, self.mask_id = map(files.roles.get, ROLES)
        assert pad is not None
        self.pad_id: int = pad
        self.template = files.template
        self.kind = files.kind
        self.reads_padding = files.reads_padding
        self.max_length = files.max_length
        model = backend.model
        self._is_wordpiece = isinstance(model, models.WordPiece)
        # tokenizers leaves CLIP's mark of a word's end in decoded texts.
        self._word_end = getattr(model, "end_of_word_suffix", None) or ""
        # Questions repeat; a hit costs 0.1 us where encoding costs about 40.
        self._pieces = functools.lru_cache(maxsize=1 << 16)(self._encode)

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 8192,
        lowercase: bool = True,
        strip_accents: bool = False,
    ) -> Self:
        """A vocabulary of at most ``vocab_size`` pieces, the same for the same texts.

        Texts are composed first (Unicode's NFC), so that both spellings of "ü" are one;
        ``strip_accents`` makes it "u".
        """
        if vocab_size < len(SPECIALS) + 2:
            raise MmflaxError(
                f"vocab_size is {vocab_size}; it must be at least {len(SPECIALS) + 2}, for the "
                "special tokens and one letter."
            )
        blank = _backend(SPECIALS, lowercase, strip_accents, composed=True)
        words: Counter[str] = Counter()
        for text, count in Counter(texts).items():
            normal = blank.normalizer.normalize_str(text)
            for word, _ in blank.pre_tokenizer.pre_tokenize_str(normal):
                words[word] += count
        if not words:
            raise MmflaxError("There is no text to learn a vocabulary from; every text is empty.")
        pieces = learn_wordpieces(words, vocab_size - len(SPECIALS))
        return cls(_backend((*SPECIALS, *pieces), lowercase, strip_accents, composed=True))

    @classmethod
    def from_vocabulary(cls, tokens: Sequence[str], *, lowercase: bool = True) -> Self:
        """From the lines of a ``vocab.txt``; the id is the position."""
        return cls(_backend(tokens, lowercase))

    @classmethod
    def load(cls, path: epath.PathLike) -> Self:
        """From a ``tokenizer.json``, or from the directory of a published tokenizer.

        Beside a ``tokenizer.json`` its ``tokenizer_config.json`` and ``special_tokens_map.json``
        are read; a directory may instead have ``vocab.txt``, ``vocab.json`` and ``merges.txt``, or
        ``spiece.model``.
        """
        path = epath.Path(path)
        if not path.exists():
            raise MmflaxError(f"There is no tokenizer at {path}; expected a tokenizer.json.")
        if tokenizer_files.is_published(path):
            files = tokenizer_files.read(path)
            return cls(files.backend, files)
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except MmflaxError as error:
            raise MmflaxError(f"{path}: {error}") from error
        except Exception as error:  # the Rust side raises a bare Exception
            raise MmflaxError(f"{path} is not a readable tokenizer.json: {error}.") from error

    def to_json(self) -> str:
        """The whole tokenizer as the text of a ``tokenizer.json``."""
        return self._backend.to_str(pretty=True)

    def files(self) -> dict[str, str]:
        """Name and text of the files that ``load`` makes this tokenizer of."""
        files = {tokenizer_files.JSON: self.to_json()}
        if self._files.config is not None:
            config = json.dumps(self._files.config, indent=1, ensure_ascii=False, sort_keys=True)
            files[tokenizer_files.CONFIG] = config + "\n"
        return files

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    def vocabulary(self) -> dict[str, int]:
        """Every piece, as the model spells it, and its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    def beyond(self, rows: int) -> dict[str, int]:
        """Tokens and ids that an embedding table of so many rows does not have, by id."""
        if self._backend.get_vocab_size() <= rows:
            return {}
        vocabulary = self._backend.get_vocab()
        return dict(
            sorted(((t, i) for t, i in vocabulary.items() if i >= rows), key=lambda x: x[1])
        )

    @property
    def continuation(self) -> tuple[bool, ...]:
        """For every id, whether its piece continues a word ("##ing").

        Empty for other models than WordPiece.
        """
        if not self._is_wordpiece:
            return ()
        return tuple(self.token(index).startswith("##") for index in range(self.vocab_size))

    def token(self, index: int) -> str:
        """The piece with this id, for showing attention by token."""
        token = self._backend.id_to_token(int(index))
        if token is None:
            return SPECIALS[1]
        whole = token if self._is_wordpiece else self._decoded([int(index)], False).strip()
        return whole or token

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """``[CLS] pieces [SEP]`` padded to ``max_length``: (int32 [t], bool [t], true = use).

        A longer text loses its end, never the ``[SEP]``; other families have another ``template``.
        """
        ids, _ = self.ids_and_types(text, max_length)
        tokens = np.full(max_length, self.pad_id, np.int32)
        tokens[: len(ids)] = ids
        if self.reads_padding:
            return tokens, np.ones(max_length, bool)
        return tokens, np.arange(max_length) < len(ids)

    def ids_and_types(
        self, text: str, max_length: int, second: str | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids of one text or two with special tokens, at most ``max_length``, and their types.

        Of two texts that are too long together, the longer one loses first.
        """
        pieces = self._pieces(text)
        others = None if second is None else self._pieces(second)
        room = max(0, max_length - self.template.num_special(second is not None))
        if others is not None:
            room, rest = share(len(pieces), len(others), room)
            others = self._cut(others, rest)
        ids, types = self.template.apply(self._cut(pieces, room), others)
        return ids[:max_length], types[:max_length]

    def count(self, text: str) -> int:
        """The number of pieces of a text, without ``[CLS]`` and ``[SEP]``."""
        return len(self._pieces(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The normalized text of the ids; special tokens are left out.

        Of a published tokenizer whose files say `clean_up_tokenization_spaces`, also the spaces
        around punctuation and contractions, as transformers does; where the files do not say it
        they stay, as in transformers 5.
        """
        text = self._decoded([int(token) for token in tokens], True)
        return _cleaned_up(text) if self._files.cleans_up else text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tokenizer):
            return False
        # The scores of a Unigram model lose their last bit whenever tokenizers reads them.
        mine, theirs = self.files(), other.files()
        return mine == theirs or _rounded(mine) == _rounded(theirs)

    __hash__ = None  # type: ignore[assignment]

    def _cut(self, pieces: tuple[int, ...], room: int) -> tuple[int, ...]:
        if len(pieces) > room:
            pieces = pieces[len(pieces) - room :] if self._files.keeps_end else pieces[:room]
        # SigLIP's tokenizer does not end a text again that says "</s>" itself.
        if self._files.siglip and pieces and pieces[-1] == self.sep_id:
            return pieces[:-1]
        return pieces

    def _decoded(self, ids: list[int], skip_special_tokens: bool) -> str:
        text = self._backend.decode(ids, skip_special_tokens=skip_special_tokens)
        if self._word_end:
            return text.replace(self._word_end, " ").strip()
        return text.strip() if self._files.siglip else text

    def _encode(self, text: str) -> tuple[int, ...]:
        if self._files.siglip is not None:
            return tuple(self._files.siglip.ids(text))
        # add_special_tokens=False also hides a loaded tokenizer's own template; ours is explicit.
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)


def _cleaned_up(text: str) -> str:
    """What transformers' `clean_up_tokenization` makes of a decoded English text."""
    for spaced, joined in _JOINED:
        text = text.replace(spaced, joined)
    return text


def _rounded(files: Mapping[str, str]) -> dict[str, Any]:
    def rounded(number: str) -> float:
        return round(float(number), 9)

    return {name: json.loads(text, parse_float=rounded) for name, text in files.items()}


def _backend(
    tokens: Sequence[str],
    lowercase: bool,
    strip_accents: bool | None = None,
    composed: bool = False,
) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise MmflaxError("The vocabulary lists a token twice; ids would be ambiguous.")
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIALS[1]))
    bert = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), bert]) if composed else bert
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([token for token in SPECIALS if token in vocabulary])
    return backend
