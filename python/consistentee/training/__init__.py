"""Training: its phases, what they optimise, how a run is kept."""
