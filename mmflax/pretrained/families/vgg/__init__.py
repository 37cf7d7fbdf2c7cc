"""The family `vgg`."""

from mmflax.pretrained.families.vgg.model import build
from mmflax.pretrained.families.vgg.names import MODEL_TYPES, fields, recognize, table

__all__ = ["MODEL_TYPES", "build", "fields", "recognize", "table"]
