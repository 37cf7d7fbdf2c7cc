"""Blind baselines: what a model scores without the image, without the text, or without looking.

An exact accuracy means little until it stands beside what the text alone gives (Goyal et al. 2017,
"Making the V in VQA matter"), so the eval step computes all of them in one pass.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from mmflax.tasks.task import Batch

VIEWS = ("full", "text_only", "image_only", "majority")


def without_image(batch: Batch, image_tokens: int) -> Batch:
    """The batch with no image: an all-false ``image_mask`` [b n]."""
    return {**batch, "image_mask": jnp.zeros((batch["text_mask"].shape[0], image_tokens), bool)}


def without_text(batch: Batch) -> Batch:
    """The batch with no text: an all-false ``text_mask`` [b t]."""
    return {**batch, "text_mask": jnp.zeros_like(batch["text_mask"])}


def seen(batch: Batch, image_tokens: int) -> dict[str, Batch]:
    """The batch by what may be looked at: `full`, `text_only` and `image_only`."""
    return {
        "full": batch,
        "text_only": without_image(batch, image_tokens),
        "image_only": without_text(batch),
    }


def blind_eval_step(
    eval_step: Callable[[Any, Any], dict[str, Any]],
    majority: Callable[[Any], dict[str, Any]] | None,
    image_tokens: int,
) -> Callable[[Any, Batch], dict[str, Any]]:
    """``eval_step`` run with everything, without the image and without the text.

    The blind values come back as ``text_only/<metric>``, ``image_only/<metric>`` and, where there
    is one, ``majority/<metric>`` (the same constant answer to everything).
    """

    def step(params: Any, batch: Batch) -> dict[str, Any]:
        views = {view: eval_step(params, b) for view, b in seen(batch, image_tokens).items()}
        full = views.pop("full")
        if majority is not None:
            views["majority"] = majority(batch)
        blind = {
            f"{view}/{name}": value
            for view, sums in views.items()
            for name, value in sums.items()
            if name != "loss"
        }
        return {**full, **blind}

    return step
