"""What the project adds to the work itself: cleaning's rate and memory, and DVC on a graph of many levels."""
