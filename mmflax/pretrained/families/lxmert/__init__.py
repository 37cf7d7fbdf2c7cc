"""The family `lxmert`."""

from mmflax.pretrained.families.lxmert.model import build
from mmflax.pretrained.families.lxmert.names import KEYS, MODEL_TYPES, fields, recognize, table
