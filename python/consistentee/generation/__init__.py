"""Decoders: their training, and what it is worth."""
