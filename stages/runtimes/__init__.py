"""Generators on runtimes other than PyTorch: export, int8, and generation from what was exported."""
