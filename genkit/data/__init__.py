"""Images and indices on their way to and from a model."""
