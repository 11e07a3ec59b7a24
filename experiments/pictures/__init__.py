"""What is shown of a run and of a sweep."""
