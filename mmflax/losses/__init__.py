"""Losses, one value per example; masking and averaging are the caller's. One file per family."""

from mmflax.losses.classification import sigmoid_cross_entropy, softmax_cross_entropy
from mmflax.losses.grounding import word_region_loss

__all__ = ["sigmoid_cross_entropy", "softmax_cross_entropy", "word_region_loss"]
