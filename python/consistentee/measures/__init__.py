"""Pure functions of outputs and labels: metrics, hardness, exit scores, curves."""
