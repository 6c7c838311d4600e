"""The served bundle: found, checked, opened and run."""
