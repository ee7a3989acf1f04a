"""PSFs and PSF fields: chosen, prepared, measured from beads, written."""
