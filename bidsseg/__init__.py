"""Segmentation of brain MRI: a BIDS App that turns T1w scans into label maps, volumes and reports."""

__version__ = "0.12.0"
