"""The family `resnet`."""

from mmflax.pretrained.families.resnet.names import MODEL_TYPES, fields, table
