"""Scores to figures. Knows no network."""
