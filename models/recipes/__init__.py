"""Training recipes: one folder for each shipped model."""
