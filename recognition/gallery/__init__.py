"""A gallery of enrolled people, and search in it."""
