"""Model files: what they say of themselves, written, read and fetched."""
