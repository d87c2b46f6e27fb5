"""Galleries of enrolled subjects: storage, search, identification."""
