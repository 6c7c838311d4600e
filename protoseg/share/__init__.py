"""Giving a model away: its card, its way to the Hugging Face Hub, and back."""
