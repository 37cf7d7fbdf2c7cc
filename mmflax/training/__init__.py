"""mmflax.training."""
