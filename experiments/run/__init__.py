"""What a run is: its config, its data, its training."""
