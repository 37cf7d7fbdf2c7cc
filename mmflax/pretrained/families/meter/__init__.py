"""The family `meter`."""

from mmflax.pretrained.families.meter.model import build
from mmflax.pretrained.families.meter.names import MODEL_TYPES, fields, recognize, table
