"""Public data sets, prepared once from the files that their authors publish."""
