"""Modality views of a batch: everything, the text only, the image only.

A multimodal score means little until it stands beside what the text alone reaches (Goyal et al.
2017, "Making the V in VQA matter").
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from mmflax.errors import MmflaxError
from mmflax.tasks.task import Batch

VIEWS = ("full", "text_only", "image_only")


def check_views(views: Sequence[str]) -> tuple[str, ...]:
    """The views in the order of `VIEWS`; raises for an unknown one, and without ``full``."""
    given = (views,) if not isinstance(views, (list, tuple)) else tuple(views)
    if not all(view in VIEWS for view in given) or "full" not in given:
        raise MmflaxError(
            f"evaluation.views is {given!r}; expected 'full', and any of 'text_only', 'image_only'"
            ", as in --config.evaluation.views=full,text_only."
        )
    return tuple(view for view in VIEWS if view in given)


def modality_views(batch: Batch, views: Sequence[str], model: Any) -> dict[str, Batch]:
    """{view: the batch as that view shows it}; `model` has a `backbone` to count image tokens."""
    shown = {}
    if "full" in views:
        shown["full"] = batch
    if "text_only" in views:
        shown["text_only"] = without_image(batch, model.backbone.image_encoder.num_tokens())
    if "image_only" in views:
        shown["image_only"] = without_text(batch)
    return shown


def without_image(batch: Batch, image_tokens: int) -> Batch:
    """The batch with no image: an all-false ``image_mask`` [b n]."""
    return {**batch, "image_mask": jnp.zeros((batch["text_mask"].shape[0], image_tokens), bool)}


def without_text(batch: Batch) -> Batch:
    """The batch with no text: an all-false ``text_mask`` [b t]."""
    return {**batch, "text_mask": jnp.zeros_like(batch["text_mask"])}
