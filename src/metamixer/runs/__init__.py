"""Run folders: training, evaluating and using them."""
