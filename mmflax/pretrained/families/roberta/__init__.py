"""The family `roberta`."""

from mmflax.pretrained.families.roberta.names import KEYS, MODEL_TYPES, fields, table
