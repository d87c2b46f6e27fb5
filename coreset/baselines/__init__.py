"""Aggregators re-created from other papers, for comparison; one paper per file."""
