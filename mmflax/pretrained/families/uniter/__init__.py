"""The family `uniter`."""

from mmflax.pretrained.families.uniter.model import build
from mmflax.pretrained.families.uniter.names import KEYS, MODEL_TYPES, fields, recognize, table
