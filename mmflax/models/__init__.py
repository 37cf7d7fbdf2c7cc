"""mmflax.models."""
