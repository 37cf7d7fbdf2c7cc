"""mmflax.inference."""
