"""Everything that turns labelled scans into a model."""
