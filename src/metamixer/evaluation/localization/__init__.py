"""Activation maps, and metrics of how well they localize objects with known boxes."""
