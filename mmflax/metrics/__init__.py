"""mmflax.metrics."""
