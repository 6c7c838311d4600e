"""Writes a commented configuration from what a folder holds."""
