"""Layers that encoders, fusion and decoders share."""
