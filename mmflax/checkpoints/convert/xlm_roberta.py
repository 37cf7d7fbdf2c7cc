"""XLM-RoBERTa (Conneau et al. 2020, arXiv:1911.02116): RoBERTa's names, and its prefix too."""

from mmflax.checkpoints.convert.roberta import fields, table

__all__ = ["fields", "table"]
