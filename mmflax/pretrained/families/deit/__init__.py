"""The family `deit`."""

from mmflax.pretrained.families.deit.names import KEYS, MODEL_TYPES, fields, table
