"""A module that workers of a Dask cluster load in tests, so that their network is fake too."""

import pytest
from fake_model import use_fakes

patch = pytest.MonkeyPatch()
use_fakes(patch)
patch.setattr("bidsseg.execution.cluster.cuda_count", lambda: 0)  # the real one would load torch, for three seconds
