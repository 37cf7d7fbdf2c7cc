"""The family `resnet`."""

from mmflax.pretrained.families.resnet.names import KEYS, MODEL_TYPES, fields, table
