"""The family `vilbert`."""

from mmflax.pretrained.families.vilbert.model import build
from mmflax.pretrained.families.vilbert.names import KEYS, MODEL_TYPES, fields, table
