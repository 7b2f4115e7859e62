"""Structural pruning: whole layers, attention heads, feed-forward neurons and hidden width, physically removed."""
