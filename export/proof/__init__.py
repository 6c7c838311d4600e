"""Parity: what is compared, how, and what decides."""
