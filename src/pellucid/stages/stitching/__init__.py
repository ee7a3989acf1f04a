"""Tiles of a mosaic: placed, blended, deconvolved."""
