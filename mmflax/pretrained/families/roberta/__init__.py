"""The family `roberta`."""

from mmflax.pretrained.families.roberta.names import MODEL_TYPES, fields, table
