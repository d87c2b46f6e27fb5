"""Cached embeddings: extraction, store, bank, template sampling, precomputed files."""
