"""Scores -> figures. Knows no network."""
