"""Training runs: configuration, assembly of modules and loaders, run folder, label audit."""
