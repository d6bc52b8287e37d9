"""Loaded by the workers of a Dask cluster in tests: their network is fake too."""

import sys

from fake_model import FakeModel, machine

from bidsseg import compute

sys.modules.update(FakeModel().modules())
compute.choose_machine = machine  # type: ignore[assignment]
