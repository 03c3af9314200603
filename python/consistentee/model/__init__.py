"""The trained model: an encoder with an exit head on each layer."""
