"""The family `deit`."""

from mmflax.pretrained.families.deit.names import MODEL_TYPES, fields, table
