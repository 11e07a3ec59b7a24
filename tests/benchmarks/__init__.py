"""What `python -m tests.benchmarks` measures, and its peers."""
