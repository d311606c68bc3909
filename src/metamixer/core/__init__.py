"""Values that every layer shares: plans, batches, seeds, files."""
