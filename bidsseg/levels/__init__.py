"""The analysis levels: ``participant``, ``group``, ``train``."""
