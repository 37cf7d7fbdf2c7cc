"""mmflax.models.fusion."""
