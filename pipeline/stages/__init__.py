"""One file a stage, each with the same face: `run(context) -> Outcome`. What feeds what is said in `graph.py`."""
