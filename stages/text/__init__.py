"""Reading and cleaning text pairs: read, normalise, filter, deduplicate, split."""
