"""What a plugin says of its components, and how they are found."""
