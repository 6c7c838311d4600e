"""Data: list formats, mask encodings, views, mixing, the embedded data set."""
