"""Images: what is known of voxels and space."""
