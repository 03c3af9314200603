"""Training: the phases, their losses, and the folder of a run."""
