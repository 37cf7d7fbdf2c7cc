"""Scores of a split: sums, modality views, retrieval, confidence intervals, tables."""
