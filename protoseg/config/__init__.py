"""Settings: sections, presets, loading, reference. Never torch."""
