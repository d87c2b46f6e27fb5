"""Parts of a training step: losses, identity mixup, optimisers, loaders, held-out validation."""
