"""Aggregators re-created from other papers, one paper a file."""
