"""Images: voxels and their position in space."""
