"""Token files: the indices of many images, encoded, stored, read and decoded."""
