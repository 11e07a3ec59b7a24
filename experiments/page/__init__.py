"""A sweep as one HTML file that opens anywhere: no server, no network. It may import pictures, records and runs, no commands."""
