"""Errors, atomic files, checked readers, distributed processes and the frame of a command line."""
