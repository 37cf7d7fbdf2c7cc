"""The family `grid`."""

from mmflax.pretrained.families.grid.model import build
