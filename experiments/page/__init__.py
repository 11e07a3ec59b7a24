"""A sweep as one HTML file that opens anywhere: no server, no network."""
