"""Names of transformers' AlignTextModel alone."""

from mmflax.checkpoints.convert.align import fields, table

__all__ = ["fields", "table"]
