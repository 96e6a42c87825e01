"""Plugins: how they describe components, and how the core finds these."""
