"""BIDS: queries, file names, output paths and the validator. Only this package builds paths."""
