"""The family `siglip`."""

from mmflax.pretrained.families.siglip.model import build
from mmflax.pretrained.families.siglip.names import KEYS, MODEL_TYPES, fields, table
