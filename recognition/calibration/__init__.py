"""Thresholds for a chosen false match rate, from labelled sets."""
