"""A run's options and files."""
