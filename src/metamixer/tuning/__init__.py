"""A search for good settings of a recipe, by Optuna."""
