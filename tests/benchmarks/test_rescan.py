"""The noise of a model from people who were scanned twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from scripts import load_script

from bidsseg.models.rescan import RESCAN, smallest_changes
