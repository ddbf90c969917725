"""Checkpoints and formats of others, in and out."""
