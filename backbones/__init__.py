"""Backbones: aligned faces to embeddings and norms. Pure torch."""
