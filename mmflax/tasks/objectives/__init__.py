"""One file is one pretraining objective: `build(**fields) -> Objective`."""
