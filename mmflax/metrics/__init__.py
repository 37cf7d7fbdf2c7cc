"""Metrics: per-example values on the device (`accuracy`), and metrics of a whole split on the host,
each equal to its official program on the same input."""

from mmflax.metrics.registry import compute, names

__all__ = ["compute", "names"]
