"""Pellucid: fluorescence microscopy made clear."""
