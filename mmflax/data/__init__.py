"""mmflax.data."""
