"""The training loop: steps, checkpoints, resuming, faults."""
