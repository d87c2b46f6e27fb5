"""Evaluation protocols: files read and checked, figures made."""
