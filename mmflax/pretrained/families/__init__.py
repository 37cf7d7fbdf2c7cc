"""Published models: a folder each, with the model and the table of its checkpoint's names.

A folder has `build(**fields) -> linen module` (`model.py`), or `fields(config, names)`,
`table(config, names)` and `MODEL_TYPES` (`names.py`), or both: some checkpoints are read into the
model of another family.
"""
