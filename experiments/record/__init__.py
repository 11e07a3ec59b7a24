"""What is kept of a run. The only folder that knows MLflow."""
