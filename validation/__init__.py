"""What the validation commands share, and one module a protocol."""
