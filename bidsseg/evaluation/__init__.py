"""Agreement of label maps."""
