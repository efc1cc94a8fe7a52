"""Imports the files that add the variants of this checkpoint: none."""
