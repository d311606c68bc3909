"""Values that all layers share: plans, batches, seeds, files."""
