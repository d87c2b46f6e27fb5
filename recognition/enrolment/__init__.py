"""Checks of a set before it is enrolled."""
