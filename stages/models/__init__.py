"""Building and loading generators, and the anatomy that says what may be pruned."""
