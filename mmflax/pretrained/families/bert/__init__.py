"""The family `bert`."""

from mmflax.pretrained.families.bert.model import build
from mmflax.pretrained.families.bert.names import MODEL_TYPES, fields, table
