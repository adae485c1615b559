"""Training recipes: one folder for each model."""
