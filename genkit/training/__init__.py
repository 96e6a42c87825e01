"""Training: `loop.train` reads from top to bottom, the rest are its parts."""
