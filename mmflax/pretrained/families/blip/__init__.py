"""The family `blip`."""

from mmflax.pretrained.families.blip.model import build
from mmflax.pretrained.families.blip.names import KEYS, MODEL_TYPES, fields, table
