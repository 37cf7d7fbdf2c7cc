"""Text decoder, its layers and memory, and decoding."""
