"""Run folders: train, evaluate and use them."""
