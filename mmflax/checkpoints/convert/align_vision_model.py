"""Names of transformers' AlignVisionModel alone."""

from mmflax.checkpoints.convert.align import fields, table

__all__ = ["fields", "table"]
