"""The family `meter`."""

from mmflax.pretrained.families.meter.model import build
from mmflax.pretrained.families.meter.names import KEYS, MODEL_TYPES, fields, recognize, table
