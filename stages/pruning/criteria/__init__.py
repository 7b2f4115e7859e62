"""One module a criterion; see stages/pruning/criterion.py."""
