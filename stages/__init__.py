"""Espalier's pipeline: one script per DVC stage, and the packages they call."""

import os

# Read by OpenMP when torch is first imported, so it has to be set before any stage imports it.
# Spinning threads collapse on a busy machine (a stage of 10 s took 165 s); waiting ones give the
# same bits and lose nothing on an idle one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Forked data workers and a threaded tokenizer dead-lock; the tokenizer says so on every fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
