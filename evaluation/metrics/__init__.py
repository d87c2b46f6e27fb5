"""Metrics of verification and identification from plain arrays, with intervals."""
