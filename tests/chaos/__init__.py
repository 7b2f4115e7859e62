"""Faults injected into the real pipeline on small data, and what became of it.

    make chaos        (or: PYTHONPATH=tests python -m chaos)

`faults` says what a fault is and what must never be lost; `ground` is the project it strikes; each family of faults is
a file. docs/faults.md has the table.
"""
