"""Words to ids and back: WordPiece with BERT's normalisation (Devlin et al. 2019, section 3)."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders, models, normalizers, pre_tokenizers

from mmflax.data.wordpiece import learn_wordpieces
from mmflax.errors import MmflaxError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class Tokenizer:
    """Wraps a ``tokenizers`` backend; every call is safe from several threads.

    Learned vocabularies hold the specials at 0..4; a loaded one (BERT's, say) may hold them
    anywhere, so read ``pad_id``, ``cls_id``, ``sep_id``, ``unk_id``, ``mask_id``.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        found = {token: backend.token_to_id(token) for token in SPECIALS}
        ids = {token: index for token, index in found.items() if index is not None}
        missing = [token for token in SPECIALS if token not in ids]
        if missing:
            raise MmflaxError(
                f"The tokenizer's vocabulary has no {', '.join(missing)}; a WordPiece vocabulary "
                f"with {' '.join(SPECIALS)} is needed."
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            ids[token] for token in SPECIALS
        )
        # Questions repeat; a hit costs 0.1 us where encoding costs about 40.
        self._pieces = functools.lru_cache(maxsize=1 << 16)(self._encode)

    @classmethod
    def learn(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int = 8192,
        lowercase: bool = True,
        strip_accents: bool | None = None,
    ) -> Tokenizer:
        """A vocabulary of at most ``vocab_size`` pieces, the same for the same texts.

        ``strip_accents`` ("ü" becomes "u") goes with ``lowercase`` where it is None, as in BERT.
        """
        if vocab_size < len(SPECIALS) + 2:
            raise MmflaxError(
                f"vocab_size is {vocab_size}; it must be at least {len(SPECIALS) + 2}, for the "
                "special tokens and one letter."
            )
        blank = _backend(SPECIALS, lowercase, strip_accents)
        words: Counter[str] = Counter()
        for text, count in Counter(texts).items():
            normal = blank.normalizer.normalize_str(text)
            for word, _ in blank.pre_tokenizer.pre_tokenize_str(normal):
                words[word] += count
        if not words:
            raise MmflaxError("There is no text to learn a vocabulary from; every text is empty.")
        pieces = learn_wordpieces(words, vocab_size - len(SPECIALS))
        return cls(_backend((*SPECIALS, *pieces), lowercase, strip_accents))

    @classmethod
    def from_vocabulary(cls, tokens: Sequence[str], *, lowercase: bool = True) -> Tokenizer:
        """From the lines of a ``vocab.txt``; the id is the position."""
        return cls(_backend(tokens, lowercase))

    @classmethod
    def load(cls, path: epath.PathLike) -> Tokenizer:
        """From a ``tokenizer.json``."""
        path = epath.Path(path)
        if not path.exists():
            raise MmflaxError(f"There is no tokenizer at {path}; expected a tokenizer.json.")
        try:
            return cls(tokenizers.Tokenizer.from_str(path.read_text()))
        except MmflaxError as error:
            raise MmflaxError(f"{path}: {error}") from error
        except Exception as error:  # the Rust side raises a bare Exception
            raise MmflaxError(f"{path} is not a readable tokenizer.json: {error}.") from error

    def to_json(self) -> str:
        """The whole tokenizer as the text of a ``tokenizer.json``."""
        return self._backend.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size()

    @property
    def continuation(self) -> tuple[bool, ...]:
        """For every id, whether its piece goes on with the word before it ("##ing")."""
        return tuple(self.token(index).startswith("##") for index in range(self.vocab_size))

    def token(self, index: int) -> str:
        """The piece with this id, for showing attention by token."""
        return self._backend.id_to_token(int(index)) or SPECIALS[1]

    def encode(self, text: str, max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """``[CLS] pieces [SEP]`` padded to ``max_length``: (int32 [t], bool [t], true = use).

        A longer text loses its end, never the ``[SEP]``.
        """
        pieces = self._pieces(text)[: max_length - 2]
        tokens = np.full(max_length, self.pad_id, np.int32)
        length = len(pieces) + 2
        tokens[0] = self.cls_id
        tokens[1 : length - 1] = pieces
        tokens[length - 1] = self.sep_id
        return tokens, np.arange(max_length) < length

    def count(self, text: str) -> int:
        """How many pieces the text has, without ``[CLS]`` and ``[SEP]``."""
        return len(self._pieces(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The normalised text of the ids; special tokens are left out."""
        return self._backend.decode([int(token) for token in tokens], skip_special_tokens=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    def _encode(self, text: str) -> tuple[int, ...]:
        # add_special_tokens=False also hides a loaded tokenizer's own template; ours is explicit.
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)


def _backend(
    tokens: Sequence[str], lowercase: bool, strip_accents: bool | None = None
) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise MmflaxError("The vocabulary lists a token twice; ids would be ambiguous.")
    unknown = SPECIALS[1]
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([token for token in SPECIALS if token in vocabulary])
    return backend
