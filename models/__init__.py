"""What ships as a model, and the recipes that make it."""
