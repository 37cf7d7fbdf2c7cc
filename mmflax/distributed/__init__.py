"""mmflax.distributed."""
