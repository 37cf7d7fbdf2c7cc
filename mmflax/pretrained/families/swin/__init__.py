"""The family `swin`."""

from mmflax.pretrained.families.swin.names import KEYS, MODEL_TYPES, fields, table
