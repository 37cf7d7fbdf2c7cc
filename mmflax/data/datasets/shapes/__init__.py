"""`shapes`: generated scenes and examples of every task over them."""

from mmflax.data.datasets.shapes.dataset import build

__all__ = ["build"]
