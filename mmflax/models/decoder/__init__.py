"""A text decoder, its layers, what it looks at, and how it writes."""
