"""Public checkpoints: found, read, converted, run and written back."""
