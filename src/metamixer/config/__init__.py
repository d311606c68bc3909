"""Recipes: the file behind every run, and the tables of names."""
