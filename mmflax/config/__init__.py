"""Config files, overrides, and one typed dataclass a section."""
