"""Stage scans brought onto upright voxels, and projections."""
