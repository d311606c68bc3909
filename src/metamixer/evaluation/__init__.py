"""Accuracy, calibration, diversity, robustness and localization of networks."""
