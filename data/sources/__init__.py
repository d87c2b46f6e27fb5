"""Where aligned faces come from: image folders, RecordIO packs, pair sets, subsets; unpacking and packing."""
