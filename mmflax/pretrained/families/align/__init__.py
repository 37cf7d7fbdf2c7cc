"""The family `align`."""

from mmflax.pretrained.families.align.model import build
from mmflax.pretrained.families.align.names import KEYS, MODEL_TYPES, fields, table
