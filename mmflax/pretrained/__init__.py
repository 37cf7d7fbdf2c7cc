"""Published checkpoints: locating, reading, converting, running and writing back."""
