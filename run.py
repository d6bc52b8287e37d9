#!/usr/bin/env python3
"""Run bidsseg from a checkout: ``run.py BIDS_DIR OUTPUT_DIR {participant,group,evaluate,train}``."""

import sys

from bidsseg.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
