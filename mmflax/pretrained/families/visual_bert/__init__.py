"""The family `visual_bert`."""

from mmflax.pretrained.families.visual_bert.model import build
from mmflax.pretrained.families.visual_bert.names import KEYS, MODEL_TYPES, fields, table
