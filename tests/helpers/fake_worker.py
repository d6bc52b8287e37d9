"""A module that workers of a Dask cluster load in tests, so that their network is fake too."""

import pytest
from fake_model import use_fakes

use_fakes(pytest.MonkeyPatch())
