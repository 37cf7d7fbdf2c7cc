"""Generation of a text about an image: captions, free answers to questions, translations.

One task serves them all, since they differ only in what the batch holds: for captions there is no
text to read (`text_mask` false everywhere), an answer follows a question, a translation a source
sentence. Training is teacher forcing on `target` (`[CLS] pieces [SEP]`): row i of the logits scores
`target[:, i + 1]`. The target goes into the decoder alone, never into an encoder or a fusion, so no
word can see a later one (see `mmflax.models.decoder`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.losses.generation import next_word_loss, token_losses
from mmflax.metrics import registry
from mmflax.metrics.tokens import tokenize
from mmflax.models.decoder import decoding
from mmflax.models.decoder.decoder import Decoder
from mmflax.models.decoder.decoder import build as build_decoder
from mmflax.models.decoder.memory import Memory, check_sources
from mmflax.models.heads import WordGrounding
from mmflax.registry import keywords
from mmflax.tasks.generation_model import GenerationModel, check_options, generate, limits_of
from mmflax.tasks.inputs import caption_word_loss
from mmflax.tasks.task import Batch, Outputs, Record, Task

__all__ = ["GenerationModel", "SCORES", "build", "generate", "score_texts"]

SCORES = ("exact_match", "bleu", "rouge_l", "cider_d")
_MORE_SCORES = ("vqa_accuracy",)


def build(
    *,
    backbone: nn.Module,
    vocab_size: int,
    pad_id: int,
    cls_id: int | None,
    sep_id: int | None,
    mask_id: int | None = None,
    target_length: int,
    decoder: Mapping[str, Any],
    memory: Sequence[str] = ("fused",),
    memory_projected: bool = True,
    table: str = "own",
    begin: int | None = None,
    label_smoothing: float = 0.0,
    decode: Mapping[str, Any] | None = None,
    scores: Sequence[str] = SCORES,
    caption_words: float = 0.0,
) -> Task:
    """The task.

    Args:
      decoder: fields of `Decoder`, such as width, depth and num_heads; `vocab_size` where it has
        more words than the tokenizer, as a published one may.
      memory: what the decoder attends to: any of "image" (the image encoder's tokens), "text" (the
        text encoder's), "fused" (both streams after fusion) and "fused_text" (the text's alone).
      memory_projected: False leaves one stream as it is, as BLIP's decoders read it; else each is
        projected to the decoder's width and has a type.
      table: "own", or "text_encoder" to share its word table (the widths must agree), which a
        small model trained from scratch gains by.
      begin: the token that a text begins with in the decoder, where it is another than the
        tokenizer's first (BLIP's [DEC], which its tokenizer does not have).
      label_smoothing: share of the target spread over the vocabulary (Szegedy et al. 2016).
      decode: `method` and its options in `predict`, as in `generate` (`repetition_penalty` and
        `no_repeat_ngram_size` among them); greedy by default. "sample" has a `seed` besides (0).
      scores: what `score` computes: any of exact_match, bleu, rouge_l, cider_d, and
        vqa_accuracy for records with `answers`.
      caption_words: above 0 adds that share of `word_region_loss`, as in the VQA task.

    The loss is the mean cross-entropy of an example's target tokens, the end included; 0 without a
    target. Metrics: `token_accuracy` and `nll` (nats a token, unsmoothed; perplexity is its
    exponential) over tokens, `exact` over examples whose every token comes first under teacher
    forcing. `predict` gives `tokens` [b s] and `scores` [b].
    """
    if target_length < 3:
        raise MmflaxError(
            f"target_length is {target_length}, so there is no text to learn to write; give "
            "--config.processor.target_length=TOKENS, at least 3."
        )
    if cls_id is None or sep_id is None:
        raise MmflaxError(
            "The task writes texts between a token that begins and one that ends them, and this "
            "processor's tokenizer has no such pair; choose another tokenizer."
        )
    if table not in ("own", "text_encoder"):
        raise MmflaxError(f"task.table is {table!r}; expected one of own, text_encoder.")
    if unknown := [name for name in scores if name not in SCORES + _MORE_SCORES]:
        reason = registry.NOT_OFFERED.get(unknown[0])
        raise MmflaxError(
            f"task.scores names {unknown[0]!r}{f' ({reason})' if reason else ''}; known are "
            f"{', '.join(SCORES + _MORE_SCORES)}."
        )
    ways = dict(decode or {})
    method = ways.pop("method", "greedy")
    seed = ways.pop("seed", 0) if method == "sample" else None
    options = check_options(method, ways)
    writer = _decoder({"max_length": target_length, **decoder}, vocab_size)
    if begin is not None and not 0 <= begin < writer.vocab_size:
        raise MmflaxError(
            f"task.begin is {begin}; expected one of the decoder's {writer.vocab_size} words, or "
            "--config.task.begin=None for the tokenizer's first token."
        )
    more = () if begin is None else (begin,)
    never = dict.fromkeys((pad_id, cls_id, mask_id, *more, *range(vocab_size, writer.vocab_size)))
    model = GenerationModel(
        backbone=backbone,
        memory=Memory(
            width=decoder.get("width", 0),
            sources=check_sources(memory),
            projected=memory_projected,
            **{name: decoder[name] for name in ("dtype", "param_dtype") if name in decoder},
        ),
        decoder=writer,
        limits=decoding.Limits(
            begin=cls_id if begin is None else begin,
            end=sep_id,
            pad=pad_id,
            length=target_length,
            # CLIP's tokenizer pads with the token that ends a text.
            forbidden=tuple(i for i in never if i is not None and i != sep_id),
        ),
        table=table,
        begin=begin,
        grounding=WordGrounding() if caption_words else None,
    )

    limits_of(model.limits, options)

    def loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        text = next_word_loss(outputs["logits"], *_wanted(batch), label_smoothing=label_smoothing)
        if not caption_words:
            return text
        return text + caption_word_loss(caption_words, outputs, batch)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        wanted, used = _wanted(batch)
        count = used.sum(axis=1, dtype=jnp.int32)
        hits = (jnp.argmax(outputs["logits"], axis=-1) == wanted) & used
        right = hits.sum(axis=1, dtype=jnp.int32)
        tokens, there = count.astype(jnp.float32), (count > 0).astype(jnp.float32)
        return {
            "token_accuracy": (right.astype(jnp.float32), tokens),
            "exact": ((right == count).astype(jnp.float32) * there, there),
            "nll": (token_losses(outputs["logits"], wanted, used).sum(axis=1), tokens),
        }

    def predict(params: Any, batch: Batch) -> dict[str, Array]:
        key = None if seed is None else jax.random.key(seed)
        return generate(model, params, batch, method=method, key=key, **ways)

    def score(records: Sequence[Record]) -> dict[str, float]:
        return score_texts(records, scores)

    return Task(model, loss, metrics, predict, score)


def score_texts(records: Sequence[Record], scores: Sequence[str] = SCORES) -> dict[str, float]:
    """`text` against `references` (else `target`, else `answer`), over the records that have them.

    `exact_match` is the share equal to one of them, word by word, case and punctuation aside.
    """
    judged = []
    for record in records:
        known = record.get("references") or [record.get("target") or record.get("answer")]
        if known[0] is not None:
            judged.append({"predicted_answer": record["text"], **record, "references": known})
    values: dict[str, float] = {}
    for name in scores if judged else ():
        if name == "exact_match":
            right = [tokenize(r["text"]) in map(tokenize, r["references"]) for r in judged]
            values[name] = sum(right) / len(right)
        else:
            values |= registry.compute(name, judged)
    return values


def _wanted(batch: Batch) -> tuple[Int[Array, "b s"], Bool[Array, "b s"]]:
    """What each row of the logits should choose, and which rows count."""
    return batch["target"][:, 1:], batch["target_mask"][:, 1:]


def _decoder(fields: Mapping[str, Any], vocab_size: int) -> Decoder:
    try:
        return build_decoder(**{"vocab_size": vocab_size, **fields})
    except TypeError as error:
        known = sorted(set(keywords(build_decoder)) - {"vocab_size"})
        raise MmflaxError(
            f"task.decoder holds {', '.join(sorted(fields))}; it needs width, depth and num_heads, "
            f"and may hold {', '.join(known)}."
        ) from error
