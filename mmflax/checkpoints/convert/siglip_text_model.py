"""Names of transformers' SiglipTextModel alone."""

from mmflax.checkpoints.convert.siglip import fields, table

__all__ = ["fields", "table"]
