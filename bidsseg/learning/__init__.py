"""Training: from labelled scans to a model."""
