"""The installed package: matching versions, data files and valid documents."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import bidsseg

ROOT = Path(__file__).parents[2]


def test_the_command_tells_the_version_of_the_package() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", "--version"], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split()[-1] == bidsseg.__version__


def test_documents_name_the_same_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {bidsseg.__version__}\n" in citation
    assert f"## [{bidsseg.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    catalogues = ROOT / "catalogues"
    assert f'"VERSION": "{bidsseg.__version__}"' in (catalogues / "nipoppy" / "config.json").read_text()
    assert f"bidsseg {bidsseg.__version__}:" in (catalogues / "nipoppy" / "zenodo.json").read_text()
    assert f"\nversion: {bidsseg.__version__}\n" in (catalogues / "neurodesk" / "build.yaml").read_text()


def test_the_hook_runs_the_locked_ruff() -> None:
    locked = re.search(r"^ruff==(.+)$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert locked and f"rev: v{locked[1]}\n" in (ROOT / ".pre-commit-config.yaml").read_text()


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


def test_the_lock_fulfils_every_requirement() -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def pins_of(file: str) -> dict[str, str]:
        lines = (ROOT / file).read_text().splitlines()
        locked = dict(line.split("==") for line in lines if line and not line.startswith("#"))
        return {canonicalize_name(name): version for name, version in locked.items()}

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    site = optional.pop("docs")  # in an environment of its own
    extras = [text for name, texts in optional.items() if name != "antspyx" for text in texts]  # wants an older numpy
    needed = {"requirements.lock": [*project["dependencies"], *extras], "docs/requirements.txt": site}
    for file, texts in needed.items():
        pins = pins_of(file)
        for text in texts:
            requirement = Requirement(text)
            if requirement.name != "bidsseg":
                assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), text


def test_relative_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
            if not link.endswith("result.png"):
                assert (document.parent / link).exists(), f"{document.name}: {link}"
