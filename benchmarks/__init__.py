"""Measurements that docs quote, with the commands that repeat them. Nothing in `stages` needs them."""
