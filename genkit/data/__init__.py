"""Reading of images for a model, and files of indices."""
