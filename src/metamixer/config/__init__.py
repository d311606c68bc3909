"""Recipes: the file that defines a run, and the registries of names."""
