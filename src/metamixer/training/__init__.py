"""The training loop: steps, checkpoints, resuming, error handling."""
