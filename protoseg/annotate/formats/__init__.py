"""A file for each annotation tool's format."""
