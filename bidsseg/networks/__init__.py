"""Network architectures, one in each file."""
