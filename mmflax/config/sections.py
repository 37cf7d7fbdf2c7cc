"""The sections of a config whose keys are our own: one frozen dataclass each.

The keys of the other sections (``model``, ``task``, ``optim``, ``processor``, ``augment`` and the
data set's part of ``data``) are the keywords of the builder that the section names.
"""

from __future__ import annotations

import dataclasses

from mmflax.config.section import Section, ranged


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Section):
    """How a split is evaluated.

    Attributes:
      split: evaluated during training.
      batch_size: rows of a batch; by default the training's.
      max_examples: evaluated during training, evenly spaced; None is the whole split.
      bootstrap: resamples for the 95 % intervals of `mmflax evaluate`; 0 leaves them out.
      rerank: retrieval's candidates of each query that pass through the fusion.
      views: modality views, a forward pass each: full, and any of text_only and image_only.
    """

    section = "evaluation"
    split: str = "validation"
    batch_size: int = ranged(least=1)
    max_examples: int | None = ranged(None, least=1)
    bootstrap: int = ranged(1000, least=0)
    rerank: int = ranged(64, least=0)
    views: tuple[str, ...] = ("full", "text_only", "image_only")
