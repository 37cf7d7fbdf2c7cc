"""One file is one pretraining objective: `build(**fields) -> Objective`."""

# They have names of their own, and are no tasks.
IS_PART_OF_ANOTHER_KIND = True
