"""Masked language modeling: hidden words from the rest of the text and the image.

BERT (Devlin et al. 2019, sec. 3.1), fused with the image as in LXMERT (Tan & Bansal 2019, sec.
3.1.1). The masked text is encoded and fused again; the image's tokens are the clean pass's.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.losses.generation import next_word_loss
from mmflax.losses.masked import mask_words
from mmflax.models.heads import MLMHead
from mmflax.tasks.objectives.objective import CleanPass, Objective, draw_key
from mmflax.tasks.task import Batch, Outputs


class MaskedWords(nn.Module):
    """`logits` [b t v] from the masked text, the true `tokens`, and `chosen` [b t], which were
    hidden."""

    vocab_size: int
    mask_id: int
    special_ids: tuple[int, ...]
    continuation: tuple[bool, ...] | None
    rate: float
    tied: bool = True
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        tokens = clean.batch["tokens"]
        hidden, chosen = mask_words(
            draw_key(self, train),
            tokens,
            clean.encoded.text_mask,
            vocab_size=self.vocab_size,
            mask_id=self.mask_id,
            special_ids=self.special_ids,
            continuation=self.continuation,
            rate=self.rate,
        )
        words = clean.encode_text(hidden, train=train)
        fused = clean.fuse(text=words, train=train)
        head = MLMHead(self.vocab_size, epsilon=self.epsilon, name="words")
        logits = head(fused.text, clean.word_table if self.tied else None)
        return {"logits": logits, "tokens": tokens, "chosen": chosen}


def build(
    *,
    vocab_size: int,
    pad_id: int,
    cls_id: int | None,
    sep_id: int | None,
    mask_id: int | None,
    continuation: Sequence[bool] = (),
    whole_word: bool = False,
    rate: float = 0.15,
    tied: bool = True,
    epsilon: float = 1e-12,
    unk_id: int | None = None,
) -> Objective:
    """`rate` of the tokens (with `whole_word`: of the words) are hidden, at least one of a text.

    The head multiplies by the text encoder's word table, or with `tied=False` by a kernel of its
    own, as METER's does; `epsilon` is its norm's (RoBERTa's 1e-5). `init.from` fills it from a
    published head.

    Metric: `mlm_accuracy`, the share of hidden words that score highest.
    """
    if not 0.0 < rate < 1.0:
        raise MmflaxError(f"task.objectives.mlm.rate is {rate}; expected a share between 0 and 1.")
    if whole_word and len(continuation) != vocab_size:
        raise MmflaxError(
            f"task.objectives.mlm.whole_word needs to know of all {vocab_size} words which go on "
            f"another, and knows of {len(continuation)}; use a WordPiece tokenizer, or unset it."
        )
    if mask_id is None:
        raise MmflaxError(
            "task.objectives.mlm hides words behind a mask token, and this processor's tokenizer "
            "has none; choose another tokenizer, or leave out mlm."
        )
    special = {i for i in (pad_id, cls_id, sep_id, mask_id, unk_id) if i is not None}
    pieces = tuple(continuation) if whole_word else None
    module = MaskedWords(vocab_size, mask_id, tuple(sorted(special)), pieces, rate, tied, epsilon)

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return next_word_loss(outputs["logits"], outputs["tokens"], outputs["chosen"])

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, tuple[Array, Array]]:
        chosen = outputs["chosen"]
        right = chosen & (outputs["logits"].argmax(axis=-1) == outputs["tokens"])
        return {"mlm_accuracy": tuple(x.sum(axis=1, dtype=jnp.float32) for x in (right, chosen))}

    return Objective(module, loss, metrics)
