"""The family `swin`."""

from mmflax.pretrained.families.swin.names import MODEL_TYPES, fields, table
