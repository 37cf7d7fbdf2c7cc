"""The family `bridgetower`."""

from mmflax.pretrained.families.bridgetower.model import build
from mmflax.pretrained.families.bridgetower.names import KEYS, MODEL_TYPES, fields, table
