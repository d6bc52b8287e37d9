"""Agreement of the sources of the images: Dockerfile, singularity.def, requirements. `make image` builds one."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SINGULARITY = (ROOT / "singularity.def").read_text()


def section(name: str) -> list[str]:
    """Return the lines of a section of singularity.def, without indentation."""
    parts = re.split(r"^%(\w+)$", SINGULARITY, flags=re.M)
    return [
        line.strip() for line in dict(zip(parts[1::2], parts[2::2], strict=True))[name].splitlines() if line.strip()
    ]


def test_both_images_have_one_environment() -> None:
    docker = dict(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=(\S+)", DOCKERFILE, re.M))
    singularity = dict(line.removeprefix("export ").split("=", 1) for line in section("environment"))
    assert docker.pop("BIDSSEG_CONTAINER_TYPE") == "docker"
    assert singularity.pop("BIDSSEG_CONTAINER_TYPE") == "apptainer"
    assert singularity == {name: value for name, value in docker.items() if not name.startswith("NVIDIA")}
    assert singularity["PYTHONNOUSERSITE"] == "1"


def test_both_images_run_the_same_program() -> None:
    (entrypoint,) = re.findall(r'^ENTRYPOINT \["(.*)", "(.*)"\]$', DOCKERFILE, re.M)
    assert section("runscript") == [f'exec {" ".join(entrypoint)} "$@"']


def test_what_is_copied_is_there_and_not_ignored() -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [line.split() for line in section("files")]
    for source, target in copied:
        assert (ROOT / source).exists()
        assert target == f"/source/{source}"
        assert any(Path(source).match(pattern) for pattern in allowed), source
    named = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M)
    assert {word.replace("${VARIANT}", "cpu") for line in named for word in line.split()} == {s for s, _ in copied}


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_requirements_are_those_that_the_tests_ran_with(variant: str) -> None:
    def pins(path: str) -> dict[str, str]:
        found = re.findall(r"^([\w.-]+)==([^\s+]+)", (ROOT / path).read_text(), re.M)
        return {re.sub("[-_.]+", "-", name).lower(): version for name, version in found}

    lines = (ROOT / f"docker/requirements-{variant}.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[\w.-]+==\S+( --hash=sha256:[0-9a-f]{64})+", line) for line in lines)
    lock, image = pins("requirements.lock"), pins(f"docker/requirements-{variant}.txt")
    assert {name: version for name, version in image.items() if name in lock} == {
        name: lock[name] for name in image if name in lock
    }
    extra = {name for name in image if name not in lock}
    assert all(name.startswith(("nvidia-", "cuda-", "triton")) for name in extra), extra
    assert {"torch", "pybids", "nibabel", "templateflow", "numpy", "simpleitk", "bids-validator-deno"} <= image.keys()


@pytest.mark.parametrize("script", sorted((ROOT / "docker").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_can_be_read_by_the_shell(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    assert script.stat().st_mode & 0o111
