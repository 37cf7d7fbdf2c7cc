"""`folder`: a folder of images of your own with a table of texts and answers."""

from mmflax.data.datasets.folder.dataset import build

__all__ = ["build"]
