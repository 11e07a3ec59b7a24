"""What `python -m experiments.benchmark` measures, and its peers."""
