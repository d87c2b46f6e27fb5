"""Photos, videos and folders of a person -> one descriptor, and what there is to say about it."""
