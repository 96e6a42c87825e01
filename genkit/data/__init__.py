"""Reading of images for a model, and files of indices."""

# The largest image that Pillow reads without a warning.
MAX_PIXELS = 89_478_485
