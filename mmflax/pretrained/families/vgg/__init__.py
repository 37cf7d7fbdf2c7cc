"""The family `vgg`."""

from mmflax.pretrained.families.vgg.model import build
from mmflax.pretrained.families.vgg.names import KEYS, MODEL_TYPES, fields, recognize, table
