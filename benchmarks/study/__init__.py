"""What pruning costs, over training seeds: every criterion and sparsity against dense, on the bundled data.

`plan` says which cells there are, `workspace` makes a cell by the stages, `results` keeps a row for each, and `report`
turns rows into the tables of docs/study.md.
"""
