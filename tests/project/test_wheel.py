"""The wheel: its content, and its use in an environment with only its runtime requirements."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import bare
import numpy as np
import phantoms
import pytest
from nifti import load_nifti

import bidsseg

ROOT = Path(__file__).parents[2]
DATA = {".tsv", ".toml", ".json", ".safetensors", ".png", ".html", ".css", ".js", ".md", ".typed", "LICENSE"}
LARGEST_MB = 75

EVERYTHING = """
import importlib, json, pkgutil
import bidsseg
from bidsseg.labels.protocol import load_protocol, shipped_protocols
from bidsseg.learning.recipe import load_recipe, shipped_recipes

modules, missing = [module.name for module in pkgutil.walk_packages(bidsseg.__path__, "bidsseg.")], set()
for name in modules:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing.add(error.name)
protocols = [load_protocol(name).name for name in shipped_protocols()]
recipes = [load_recipe(name).name for name in shipped_recipes()]
print(json.dumps([bidsseg.__file__, sorted(missing), len(modules), len(protocols), len(recipes)]))
"""
"""Program that imports every module and reads every protocol and recipe."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "bidsseg", source / "bidsseg", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    build += ["-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    return next(folder.glob("bidsseg-*.whl"))


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment in which the wheel is installed."""
    return bare.make_environment(tmp_path_factory.mktemp("environment"), wheel)


def test_every_file_of_the_package_is_of_a_known_kind() -> None:
    files = [path for path in (ROOT / "bidsseg").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    unknown = {path.suffix or path.name for path in files} - DATA - {".py"}
    assert not unknown, "add them to package-data in pyproject.toml, and to DATA here"


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bidsseg").rglob("*")
        if (path.suffix or path.name) in {".py"} | DATA and "__pycache__" not in path.parts
    }
    assert {path.rpartition(".")[2] for path in wanted} >= {"py", "tsv", "toml", "html", "css", "js"}
    assert not wanted - set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    folders = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert folders == {"bidsseg", f"bidsseg-{bidsseg.__version__}.dist-info"}
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "test" in name or ".nii" in name]
    assert wheel.stat().st_size < LARGEST_MB * 1e6


def test_the_wheel_has_the_command_the_version_and_the_licence(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    info = f"bidsseg-{bidsseg.__version__}.dist-info"
    assert "bidsseg = bidsseg.app.cli:main" in content.read(f"{info}/entry_points.txt").decode()
    metadata = content.read(f"{info}/METADATA").decode()
    assert f"\nVersion: {bidsseg.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in content.namelist()


def test_the_installed_command_answers(programs: Path, tmp_path: Path) -> None:
    assert bare.run(programs, "bidsseg", "--version", folder=tmp_path).split()[-1] == bidsseg.__version__
    assert "--participant-label" in bare.run(programs, "bidsseg", "--help", folder=tmp_path)
    listed = bare.run(programs, "bidsseg", "--list-models", folder=tmp_path)
    assert "wholebrain" in listed and "segnet" in listed


def test_every_module_table_and_recipe_is_found(programs: Path, tmp_path: Path) -> None:
    """Packages for development and extras are missing, and the folder is not the checkout."""
    place, missing, *counts = json.loads(bare.run(programs, "python", "-c", EVERYTHING, folder=tmp_path))
    assert Path(place).is_relative_to(programs.parent)
    assert missing == ["SimpleITK"]  # of the extras flair and spaces
    package = ROOT / "bidsseg"
    modules = len(list(package.rglob("*.py"))) - 1  # but for the package itself
    tables = (package / "labels" / "protocols").glob("*.tsv"), (package / "learning" / "recipes").glob("*.toml")
    assert counts == [modules, *(len(list(files)) for files in tables)]


def test_nothing_else_is_installed_there(programs: Path, tmp_path: Path) -> None:
    for name in ("pytest", "nilearn", "dask_jobqueue"):
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            bare.run(programs, "python", "-c", f"import {name}", folder=tmp_path)


def test_the_installed_command_segments_a_dataset(programs: Path, tmp_path: Path) -> None:
    """A head of half the size is segmented with a shipped model: label maps, tables, pictures, pages and viewer."""
    bids = phantoms.make_bids(tmp_path / "bids", participants=1)
    (path,) = bids.rglob("*_T1w.nii.gz")
    image = load_nifti(path)
    data = np.asarray(image.dataobj)
    phantoms.save(path, data, image.affine @ np.diag([0.5, 0.5, 0.5, 1]))
    words = ["--fast", "--viewer", "--n-cpus", "1", "--precision", "fp32"]
    bare.run(programs, "bidsseg", bids, tmp_path / "out", "participant", "group", *words, folder=tmp_path)
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*")}
    anat = "sub-01/anat/sub-01_seg-BrainCOLOR_desc-wholebrain"
    assert written >= {f"{anat}_{end}" for end in ("dseg.nii.gz", "dseg.tsv", "dseg.json", "morph.tsv")}
    assert written >= {"sub-01.html", "group.html", "group_seg-BrainCOLOR_desc-wholebrain_morph.tsv"}
    (viewer,) = [name for name in written if name.endswith(".html") and "viewer" in name]
    assert "niivue" in (tmp_path / "out" / viewer).read_text().lower()
