"""Decoders whose tokens leave early: the checkpoint, its layers, and the reference generator."""
