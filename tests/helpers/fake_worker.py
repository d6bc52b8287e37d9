"""A module that workers of a Dask cluster load in tests, so that their network is fake too."""

import sys

from fake_model import FakeModel, machine

from bidsseg.execution import machine as this_machine

sys.modules.update(FakeModel().modules())
this_machine.choose_machine = machine
