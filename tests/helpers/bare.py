"""An environment with the wheel and its runtime requirements only, as on a user's machine."""

import os
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def runtime_requirements() -> list[Distribution]:
    """Return the distributions that the package requires without extras, directly or not, from this environment.

    A distribution that is not installed here is omitted: imports of it fail in the new environment.
    """
    texts = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    found: dict[str, Distribution] = {}
    while texts:
        requirement = Requirement(texts.pop())
        name = canonicalize_name(requirement.name)
        if name in found or not (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue
        texts += found[name].requires or []
    return list(found.values())


def make_environment(folder: Path, wheel: Path) -> Path:
    """Install a wheel in a new environment and return the folder of its programs.

    The runtime requirements are links to this environment, so that their installation needs neither time nor a network.
    No other module or program of this environment is available there, in particular not the project itself.
    """
    quietly(sys.executable, "-m", "venv", "--without-pip", folder)
    programs = folder / "bin"
    (shared,) = folder.glob("lib/python*/site-packages")
    for one in runtime_requirements():
        for file in {path.parts[0] for path in one.files or ()} - {"..", "__pycache__"}:
            if not (shared / file).exists():
                (shared / file).symlink_to(Path(str(one.locate_file(file))))
        for path in one.files or ():
            if path.parts[-2:-1] == ("bin",) and path.parts[0] == "..":
                share_program(Path(str(one.locate_file(path))), programs)
    pip = [sys.executable, "-m", "pip", "--python", str(programs / "python"), "--disable-pip-version-check"]
    quietly(*pip, "install", "--quiet", "--no-index", "--no-deps", wheel)
    return programs


def share_program(program: Path, folder: Path) -> None:
    """Link a program of this environment into another one, whose Python runs it if it is a script."""
    shared = folder / program.name
    if program.read_bytes()[:2] != b"#!":
        shared.symlink_to(program)
        return
    _, _, body = program.read_text().partition("\n")
    shared.write_text(f"#!{folder / 'python'}\n{body}")
    shared.chmod(0o755)


def run(programs: Path, *words: str | Path, folder: Path) -> str:
    """Run a program of the environment in a folder and return what it prints; AssertionError if it fails.

    No environment variable points to Python modules or programs other than those of the system.
    """
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    surroundings["PATH"] = f"{programs}{os.pathsep}{os.defpath}"
    command = [programs / str(words[0]), *words[1:]]
    done = subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def quietly(*words: str | Path) -> None:
    """Run a command; AssertionError with what it printed if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
