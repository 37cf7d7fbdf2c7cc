"""The family `clip`."""

from mmflax.pretrained.families.clip.model import build
from mmflax.pretrained.families.clip.names import (
    KEYS,
    MODEL_TYPES,
    fields,
    preprocessing,
    recognize,
    table,
)
