"""All that knows BIDS: queries, file names, sidecars and the validator. Only this room builds a path."""
