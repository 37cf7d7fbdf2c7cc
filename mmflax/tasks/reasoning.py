"""Whether a statement is true of one image (NLVR) or of two (NLVR2). Suhr et al. 2017, 2019.

Two images are read in the "pair" form of LXMERT (Tan & Bansal 2019) and UNITER (Chen
et al. 2020): the statement is encoded with each by the same weights, and the head reads both
vectors side by side.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.errors import MmflaxError
from mmflax.metrics.reasoning import accuracy_and_consistency
from mmflax.tasks.inputs import encode, grounded, pair_rows
from mmflax.tasks.pooled import PooledModel, answer_task
from mmflax.tasks.task import Batch, Outputs, Record, Task


class PairModel(nn.Module):
    """Reads the text with each image of a pair; gives what `PooledModel` gives.

    Either image may be absent (`image_present`, `second_image_present`, or their `region_mask`). A
    fusion with three types gives each image one of its own, as METER, ViLT and UNITER do. Words are
    grounded in the first, which is the one that a caption is of.
    """

    backbone: nn.Module
    head: nn.Module
    grounding: nn.Module | None = None

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        both, image_type = pair_rows(batch), None
        if self.backbone.fusion.num_types > 2:
            image_type = jnp.arange(both["tokens"].shape[0]) % 2 + 1
        encoded = encode(self.backbone, both, image_type=image_type, train=train)
        rows, width = encoded.pooled.shape
        logits = self.head(encoded.pooled.reshape(rows // 2, 2 * width), train=train)
        first = encoded._replace(
            image_mask=encoded.image_mask[::2],
            image_tokens=encoded.image_tokens[::2],
        )
        return {"logits": logits, **grounded(self.grounding, self.backbone, first)}


def build(
    *,
    backbone: nn.Module,
    num_answers: int,
    question_types: tuple[str, ...] = (),
    head: Mapping[str, Any] | None = None,
    images: int = 2,
    label_smoothing: float = 0.0,
    caption_words: float = 0.0,
) -> Task:
    """The task over `images` images, 1 or 2; `head` holds fields of `VQAHead`, `caption_words` is
    as in `vqa`.

    Metrics: `accuracy`, and by type. Over a whole split `accuracy` and `consistency`, where every
    record has an `answer` and a `group` (its statement's identity).
    """
    if images not in (1, 2):
        raise MmflaxError(f"task.images is {images}; expected 1 (NLVR) or 2 (NLVR2).")
    return answer_task(
        backbone,
        num_answers,
        score=score,
        head=head,
        label_smoothing=label_smoothing,
        caption_words=caption_words,
        question_types=question_types,
        model=PairModel if images == 2 else PooledModel,
    )


def score(records: Sequence[Record]) -> dict[str, float]:
    """`accuracy` and `consistency`; nothing where a record lacks `answer` or `group`."""
    if not records or any(r.get("answer") is None or r.get("group") is None for r in records):
        return {}
    return accuracy_and_consistency(
        [str(record["predicted_answer"]) for record in records],
        [str(record["answer"]) for record in records],
        [record["group"] for record in records],
    )
