"""Tokenizers, special tokens and text augmentation."""
