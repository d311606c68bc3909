"""Activation maps, and how well they localize objects with known boxes."""
