"""Evaluation, calibration and comparison of trained models."""
