"""Files beside images: provenance, look-up tables, data dictionaries and the files at the top level."""

import csv
import io
import json
import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import unquote, urlparse

import nibabel as nib
import numpy as np
import pytest
from bids_trees import make_tree

from bidsseg import __version__
from bidsseg.bids import outputs
from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import OutputPaths, output_paths
from bidsseg.bids.query import find_scans
from bidsseg.bids.scan import Scan
from bidsseg.bids.validator import PROGRAM, _program
from bidsseg.derivative import links, root, sidecar_keys, sidecars
from bidsseg.derivative.sidecar_keys import Sidecar
from bidsseg.errors import OutputNotWritable
from bidsseg.files import write_json_atomic, write_text_atomic

DETAILS: Sidecar = {"Models": [{"Name": "wholebrain", "SHA256": "0" * 64}]}


@pytest.fixture(autouse=True)
def _outside_of_containers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*root.ENVIRONMENT.values(), "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER"):
        monkeypatch.delenv(name, raising=False)


def test_sources_are_uris_in_the_linked_dataset(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii", "sub-01_FLAIR.nii")
    (scan,) = find_scans(bids_dir)
    assert scan.flair is not None
    content = sidecars.mask_sidecar("Lesion", sidecars.Origin([scan.t1w, scan.flair], bids_dir, DETAILS))
    assert content["Sources"] == ["bids:raw:sub-01/anat/sub-01_T1w.nii", "bids:raw:sub-01/anat/sub-01_FLAIR.nii"]
    assert content["SpatialReference"] == content["Sources"][0]
    assert content["Type"] == "Lesion"
    assert content["Models"] == DETAILS["Models"]
    description = root.dataset_description(tmp_path / "out", bids_dir)
    assert links.SOURCE in description["DatasetLinks"]


def test_description_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bids_dir = make_tree(tmp_path / "my bïds")
    outside = root.dataset_description(tmp_path / "out", bids_dir)
    assert outside["DatasetType"] == "derivative"
    assert outside["Name"] == "bidsseg: segmentation of A test"
    (tool,) = outside["GeneratedBy"]
    assert (tool["Name"], tool["Version"]) == ("bidsseg", __version__)
    assert "Container" not in tool
    assert Path(unquote(urlparse(outside["DatasetLinks"]["raw"]).path)) == bids_dir
    inside = root.dataset_description(bids_dir / "derivatives" / "bidsseg", bids_dir)
    assert inside["DatasetLinks"]["raw"] == "../.."
    output, masks = bids_dir / "derivatives" / "bidsseg", bids_dir / "derivatives" / "my masks"
    both = root.dataset_description(output, bids_dir, links={"lesions": masks})
    assert both["DatasetLinks"]["lesions"] == "../my%20masks"
    monkeypatch.setenv("BIDSSEG_CONTAINER_TYPE", "docker")
    monkeypatch.setenv("BIDSSEG_CONTAINER_TAG", "bidsseg:0.1.0")
    (tool,) = root.dataset_description(tmp_path / "out", bids_dir)["GeneratedBy"]
    assert tool["Container"] == {"Type": "docker", "Tag": "bidsseg:0.1.0"}
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/bidsseg.sif")
    (tool,) = root.dataset_description(tmp_path / "out", bids_dir)["GeneratedBy"]
    assert tool["Container"]["Type"] == "apptainer"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"Name": 3, "DatasetDOI": 4}'])
def test_a_broken_description_of_the_input_does_not_matter(tmp_path: Path, content: str) -> None:
    bids_dir = make_tree(tmp_path / "bids")
    (bids_dir / "dataset_description.json").write_text(content, encoding="utf-8")
    root.write_root_files(tmp_path / "out", bids_dir, {"wholebrain": "A model"})
    assert json.loads((tmp_path / "out/dataset_description.json").read_text())["Name"].startswith("bidsseg")


def test_doi_of_the_source(tmp_path: Path) -> None:
    bids_dir = make_tree(tmp_path / "bids")
    (bids_dir / "dataset_description.json").write_text('{"Name": "x", "DatasetDOI": "doi:10.1/2"}', encoding="utf-8")
    (source,) = root.dataset_description(tmp_path / "out", bids_dir)["SourceDatasets"]
    assert source["DOI"] == "doi:10.1/2"


def test_descriptions_of_several_models_gather(tmp_path: Path) -> None:
    bids_dir, output = make_tree(tmp_path / "bids"), tmp_path / "out"
    root.write_root_files(output, bids_dir, {"one": 'The first,\nwith \t"quotes"'})
    root.write_root_files(output, bids_dir, {"two": "The second"})
    root.write_root_files(output, bids_dir, {"two": "The second, better"})
    text = (output / "descriptions.tsv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert {row["desc_id"]: row["description"] for row in rows} == {
        "desc-aseg": "Label map with the values and names of FreeSurfer's aseg (--freesurfer)",
        "desc-brain": "Brain mask",
        "desc-one": 'The first, with "quotes"',
        "desc-onebrain": "Brain mask of one in the space halfway between sessions (longitudinal)",
        "desc-oneentropy": "Uncertainty of one: entropy of its probabilities, 0 to 1",
        "desc-onelongitudinal": "Label map of one from all sessions of a participant (longitudinal)",
        "desc-two": "The second, better",
        "desc-twobrain": "Brain mask of two in the space halfway between sessions (longitudinal)",
        "desc-twoentropy": "Uncertainty of two: entropy of its probabilities, 0 to 1",
        "desc-twolongitudinal": "Label map of two from all sessions of a participant (longitudinal)",
    }
    readme = (output / "README.md").read_text(encoding="utf-8")
    assert "A test" in readme and "`one`" in readme and "`two`: The second, better" in readme


def test_the_readme_lists_every_kind_of_file(tmp_path: Path) -> None:
    """Pictures are left out: they are on the pages."""
    bids_dir, output = make_tree(tmp_path / "bids"), tmp_path / "out"
    root.write_root_files(output, bids_dir, {"one": "The first"})
    rows = [line for line in (output / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall("`([^`]+)`", row.split(" | ")[0])]
    patterns = tomllib.loads((Path(outputs.__file__).parent / "outputs.toml").read_text(encoding="utf-8"))
    names = [entry["name"] for table in ("scan", "session", "series", "group") for entry in patterns[table].values()]
    files = ["sub-01_" + re.sub(r"{\w+}", "x", name).rpartition("/")[2] for name in names if "/figures/" not in name]
    files = [name.removeprefix("sub-01_") if name.startswith("sub-01_group") else name for name in files]
    assert [name for name in files if not any(fnmatch(name, pattern) for pattern in listed)] == []


def test_no_pattern_in_bidsignore_ends_in_a_slash() -> None:
    assert not [line for line in root.BIDSIGNORE if line.endswith("/")]


def test_data_dictionaries_tell_every_column() -> None:
    content = sidecars.group_sidecar("FAST", ["participant_id", "run_id"], {"GM": "grey matter"})
    assert {"Description", "participant_id", "run_id", "quality", "GM"} <= set(content)
    assert content["GM"]["Units"] == "mm^3"
    columns = ["index", "name", "abbreviation", "voxels", "volume-mm3", "softvolume-mm3", "expected-dice"]
    assert list(sidecars.VOLUMES) == columns


def test_text_is_written_completely_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "text.txt"
    write_text_atomic(path, "mm³\n")
    assert path.read_text(encoding="utf-8") == "mm³\n"
    assert [other.name for other in path.parent.iterdir()] == ["text.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable):
        write_text_atomic(tmp_path / "file" / "text.txt", "x")


def write_outputs(output: Path, scan: Scan, bids_dir: Path, paths: OutputPaths) -> None:
    """Write tiny images with all files that belong beside them."""
    origin = sidecars.Origin([scan.t1w], bids_dir, DETAILS)
    contents = {
        **{path: sidecars.dseg_sidecar(name, origin) for name, path in paths.dseg.items()},
        **{path: sidecars.probseg_sidecar(name, ["GM", "WM"], origin) for name, path in paths.probseg.items()},
        **{path: sidecars.entropy_sidecar(name, origin) for name, path in paths.entropy.items()},
        paths.brain: sidecars.mask_sidecar("Brain", origin),
    }
    if paths.lesion:
        contents[paths.lesion] = sidecars.mask_sidecar("Lesion", origin)
    for path, content in contents.items():
        write_json_atomic(output / with_extension(path, ".json"), content)
        shape = (3, 3, 3, 2) if path in paths.probseg.values() else (3, 3, 3)
        image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.eye(4))
        image.header.set_xyzt_units("mm", "sec" if len(shape) == 4 else None)
        image.to_filename(output / path)
    for path in paths.dseg.values():
        write_text_atomic(output / with_extension(path, ".tsv"), "index\tname\n0\tbackground\n1\tGM\n")
    for name, path in paths.morph.items():
        write_text_atomic(output / path, "\t".join(sidecars.VOLUMES) + "\n")
        write_json_atomic(output / with_extension(path, ".json"), sidecars.morph_sidecar(name, origin))


@pytest.mark.parametrize("place", ["out", "bids/derivatives/bidsseg"])
def test_the_validator_accepts_a_whole_dataset(tmp_path: Path, place: str) -> None:
    bids_dir = make_tree(tmp_path / "bids", "sub-01_T1w.nii.gz", "sub-02_ses-1_run-1_T1w.nii.gz")
    output = tmp_path / place
    for scan in find_scans(bids_dir):
        paths = output_paths(scan, "wholebrain", ["FAST"], probseg=True, entropy=True, lesion=True)
        write_outputs(output, scan, bids_dir, paths)
        for extra in (paths.report, *paths.figures.values()):
            write_text_atomic(output / extra, "x")
    root.write_root_files(output, bids_dir, {"wholebrain": "A model"})
    program = _program()
    assert program is not None, f"{PROGRAM} is missing"
    done = subprocess.run([program, str(output), "--format", "json"], capture_output=True, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    assert not [issue for issue in issues if issue["severity"] == "error"]
    assert not [issue for issue in issues if "/anat/" in issue.get("location", "")]
    ours = ("GeneratedBy", "SourceDatasets", "DatasetLinks")
    assert not [issue for issue in issues if issue.get("subCode") in ours]
    assert done.returncode == 0


@pytest.mark.parametrize("value", [None, 3, "text", {"a": 1}, [3], [{"SHA256": "0"}]])
def test_a_sidecar_that_a_user_has_edited_can_be_read(tmp_path: Path, value: object) -> None:
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(dict.fromkeys(sidecar_keys.Sidecar.__annotations__, value)))
    found = sidecar_keys.read_sidecar(path)
    assert sidecar_keys.is_record(found) and sidecar_keys.models(found) == []
    assert all(isinstance(text, str) for read in (sidecar_keys.sources, sidecar_keys.messages) for text in read(found))
    assert sidecar_keys.quality(found) == (3 if value == 3 else None)
    assert sidecar_keys.output_spaces(found) == (value if isinstance(value, dict) else {})
    assert sidecar_keys.read_sidecar(tmp_path / "none.json") == {}
