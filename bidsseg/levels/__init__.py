"""What is asked for, told from top to bottom: ``participant``, ``group``, ``evaluate``, ``train``."""
