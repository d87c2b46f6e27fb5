"""Evaluation protocols: reading, validation and metrics."""
