"""Fixtures that several test files share."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small volumes: threads would only wait for each other

import phantoms
import pytest


@pytest.fixture
def make_bids(tmp_path: Path) -> Callable[..., Path]:
    """``make_bids(participants=2, sessions=0, runs=0, flair=False)`` writes a dataset; see `phantoms.make_bids`."""
    return partial(phantoms.make_bids, tmp_path / "bids")


@pytest.fixture(params=phantoms.CASES)
def head_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A head in each of the forms in which real data comes, one after the other."""
    return phantoms.save_case(tmp_path, request.param)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of the real data, named by BIDSSEG_TESTDATA."""
    if folder := os.environ.get("BIDSSEG_TESTDATA"):
        return Path(folder)
    pytest.skip("real data: set BIDSSEG_TESTDATA to its folder")
