"""mmflax.models.encoders."""
