"""Names of transformers' CLIPVisionModel alone."""

from mmflax.checkpoints.convert.clip import fields, table

__all__ = ["fields", "table"]
