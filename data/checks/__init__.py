"""Checks of training data: colour order, label noise, near-duplicates, contact sheets."""
