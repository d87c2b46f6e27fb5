"""Set benchmarks in the IJB layout, built from any folder of subjects."""
