"""Search for good settings of a recipe with Optuna."""
