"""One file per stage, each with a function `run(context) -> Outcome`. Their inputs are listed in `graph.py`."""
