"""The family `bert`."""

from mmflax.pretrained.families.bert.model import build
from mmflax.pretrained.families.bert.names import KEYS, MODEL_TYPES, fields, table
