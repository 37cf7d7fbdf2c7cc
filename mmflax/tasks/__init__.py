"""mmflax.tasks."""
