"""Bytes on disk -> tensors."""
