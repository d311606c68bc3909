"""Metrics of predictions: functions of logits and labels."""
