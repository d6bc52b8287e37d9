"""The analysis levels: ``participant``, ``longitudinal``, ``group``, ``evaluate``, ``train``."""
