"""Deconvolution of files and arrays, in one piece or by tiles."""
