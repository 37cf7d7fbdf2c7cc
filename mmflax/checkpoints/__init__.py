"""mmflax.checkpoints."""
