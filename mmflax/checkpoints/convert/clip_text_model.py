"""Names of transformers' CLIPTextModel alone."""

from mmflax.checkpoints.convert.clip import fields, table

__all__ = ["fields", "table"]
