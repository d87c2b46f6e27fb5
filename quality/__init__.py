"""Quality of a face: whether the norm measures quality, which measure to use, image measures."""
