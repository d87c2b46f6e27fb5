"""What a training run reads: sources of aligned faces, sampling, checks."""
