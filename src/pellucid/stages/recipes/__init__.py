"""Recipes: several steps planned together, timed on a piece, run, and gone on with."""
