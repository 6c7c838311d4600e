"""From bytes to pixels, and from label maps to bytes."""
