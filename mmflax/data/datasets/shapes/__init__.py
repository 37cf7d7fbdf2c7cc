"""`shapes`: rendered scenes, as examples of every task, that only the picture solves."""

from mmflax.data.datasets.shapes.dataset import build

__all__ = ["build"]
