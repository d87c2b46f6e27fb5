"""Quality of a face: whether the norm is one, which measure to use, image measures."""
