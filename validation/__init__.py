"""What the validation commands share, and one module per protocol."""
