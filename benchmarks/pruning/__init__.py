"""The pruning engine beside other libraries: seconds, memory and what is left of a model.

`subjects` are the models and their texts, `ways` how each library prunes them, `cell` is one measurement in a process
of its own, `results` keeps a row for each, and `report` turns rows into the tables of docs/benchmark.md.
"""
