"""The family `vilt`."""

from mmflax.pretrained.families.vilt.model import build
from mmflax.pretrained.families.vilt.names import KEYS, MODEL_TYPES, fields, table
