"""mmflax.data.datasets."""
