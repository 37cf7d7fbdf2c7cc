"""Data sets by name: `shapes` (generated), `folder` (your own files), and public ones."""
