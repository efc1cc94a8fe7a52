"""Imports the variants that came with a checkpoint: where it has any, lines below import its user's files."""
