"""What the training examples have: texts and answers to learn from, and which fields a processor
needs for them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from mmflax.batch_keys import PREFIXES, SECOND
from mmflax.data import answers as spellings
from mmflax.data.dataset import Dataset, Raw, Source, has_image, text_of
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError, option


class Survey:
    """One walk over a split, without decoding an image.

    Attributes:
      questions, targets: how often each text occurs; captions: every one.
      answer_counts: how often each answer occurs, as it is written.
      annotated: whether any example has every annotator's answer.
      images: whether any example has pixels.
      wordless: ids of examples whose question is empty.
      fields: of a ``Processor``, as the examples need them.
    """

    def __init__(self, source: Source):
        self.questions: Counter[str] = Counter()
        self.targets: Counter[str] = Counter()
        self.captions: list[str] = []
        self.answer_counts: Counter[str] = Counter()
        self.images = self.annotated = False
        self.wordless: list[str] = []
        absent, regions = Counter[str](), (0, 0, 0)
        image_ids = True
        for index in range(len(source)):
            raw = text_of(source, index)
            if raw.get("question"):
                self.questions[raw["question"]] += 1
            elif raw.get("question") is not None:
                self.wordless.append(str(raw.get("id", index)))
            if raw.get("answer") is not None:
                self.answer_counts[raw["answer"]] += 1
            self.annotated |= bool(raw.get("answers"))
            if raw.get("caption"):
                self.captions.append(raw["caption"])
            if raw.get("target"):
                self.targets[raw["target"]] += 1
            self.images |= raw.get("image") is not None
            absent.update(prefix for prefix in PREFIXES if not has_image(raw, prefix))
            regions = _largest(regions, raw)
            image_ids &= "image_id" in raw
        second_images = absent[SECOND] < len(source)
        self.fields: dict[str, Any] = dict(
            absent_images=bool(absent[""] or (second_images and absent[SECOND])),
            second_images=second_images,
            image_keys=image_ids,
            reads_image=absent[""] < len(source),
        )
        if regions[0]:
            names = ("num_regions", "region_dim", "region_classes")
            self.fields |= dict(zip(names, regions, strict=True))

    @property
    def texts(self) -> tuple[str, ...]:
        """What a vocabulary is learned from."""
        return (*self.questions.elements(), *self.captions, *self.targets)

    def check_words(self, tokenizer: Tokenizer) -> None:
        """Raises for questions without a word, which no processor takes."""
        bare = {text: n for text, n in self.questions.items() if not tokenizer.count(text)}
        count = len(self.wordless) + sum(bare.values())
        if count:
            first = f"{next(iter(bare))!r}" if bare else f"that of {self.wordless[0]}"
            raise MmflaxError(
                f"The questions of {count} training examples have no word (such as {first}); write "
                "them, leave the examples out, or give None where there is no text."
            )

    def answers(self, min_count: int, how: str) -> tuple[str, ...]:
        """Those that occur so often, by frequency, then alphabetically.

        Args:
          min_count: how often, in any spelling.
          how: when two spellings are one answer, as `mmflax.data.answers.form_of` names it; its
            commonest spelling is the answer.
        """
        groups = spellings.grouped(self.answer_counts, spellings.form_of(how)).values()
        counts = {spellings.commonest(group): group.total() for group in groups}
        answers = [answer for answer in counts if counts[answer] >= min_count]
        if counts and not answers:
            raise MmflaxError(
                f"No answer occurs {min_count} times in training, and the commonest "
                f"{max(counts.values())}; give "
                f"{option('processor.min_answer_count', max(counts.values()))} or less."
            )
        return tuple(sorted(answers, key=lambda answer: (-counts[answer], str(answer))))

    def notes(self, how: str) -> list[str]:
        """Sentences on the answers that a user should know before training."""
        notes = [spellings.merged(self.answer_counts, how)]
        groups = spellings.grouped(self.answer_counts, spellings.form_of(how))
        count = self.answer_counts.total()
        if len(groups) == 1 and count > 1:
            notes.append(
                f"every answer of the {count} training examples is "
                f"{spellings.commonest(self.answer_counts)!r}, so there is nothing to choose and "
                "an accuracy of 100 % means nothing; add examples with other answers"
            )
        once = [spellings.commonest(group) for group in groups.values() if group.total() == 1]
        if once and len(once) < count and count >= 20:
            named = ", ".join(repr(answer) for answer in once[:3])
            notes.append(
                f"{len(once)} of the {len(groups)} answers have one training example ({named}"
                f"{', …' if len(once) > 3 else ''}), which is too few to learn them; add examples, "
                "or leave them out with --config.processor.min_answer_count=2"
            )
        return [note for note in notes if note is not None]


def question_types(dataset: Dataset) -> tuple[str, ...]:
    """Of every split, since they name metrics and are not learned."""
    types = {
        text_of(source, index).get("question_type", "all")
        for source in dataset.splits.values()
        for index in range(len(source))
    }
    return tuple(sorted(types))


HEAD_ROOM = 0.25


def fit_length(tokenizer: Tokenizer, texts: Iterable[str], head_room: float = 0.0) -> int:
    """Tokens of the longest text with its ends, and ``head_room`` of that more, rounded up to a
    multiple of 8."""
    longest = max((tokenizer.count(text) for text in texts), default=0)
    longest += tokenizer.template.num_special(pair=False)
    return -(-math.ceil(longest * (1 + head_room)) // 8) * 8


def cut_texts(
    tokenizer: Tokenizer, max_length: int, texts: Iterable[str | None], where: str
) -> str | None:
    """A sentence on the texts that lose their end, or None where none does."""
    room = max_length - tokenizer.template.num_special(pair=False)
    counts = [tokenizer.count(text) for text in texts if text]
    longer = [count for count in counts if count > room]
    if not longer:
        return None
    needed = max(longer) + max_length - room
    return (
        f"{len(longer)} of the {len(counts)} texts {where} {'is' if len(longer) == 1 else 'are'} "
        f"longer than {max_length} tokens and {'loses its' if len(longer) == 1 else 'lose their'} "
        f"end; a run trained with --config.processor.max_length={needed} reads them whole"
    )


def _largest(shape: tuple[int, int, int], raw: Raw) -> tuple[int, int, int]:
    """Regions, their numbers and classes, where ``raw`` may have more than were seen so far."""
    for prefix in PREFIXES:
        regions, labels = raw.get(f"{prefix}regions"), raw.get(f"{prefix}region_labels")
        if regions is None:
            continue
        count, dim = np.shape(regions)
        classes = 0
        if labels is not None:
            one_each = np.ndim(labels) == 1
            classes = int(np.max(labels, initial=-1)) + 1 if one_each else np.shape(labels)[1]
        shape = max(shape[0], count), dim, max(shape[2], classes)
    return shape
