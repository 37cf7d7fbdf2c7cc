"""The family `vit`."""

from mmflax.pretrained.families.vit.model import build
from mmflax.pretrained.families.vit.names import KEYS, MODEL_TYPES, fields, table
