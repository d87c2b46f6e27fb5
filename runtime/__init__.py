"""What every package may import: errors, atomic files, processes, the frame of a command line."""
