"""Work on a Dask cluster that somebody has started: cleaning, and levels of a sweep."""
