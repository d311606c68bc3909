"""How good predictions are: functions of logits and labels, attacks and corruptions."""
