"""Measuring quality, fluency, size and speed, with intervals."""
