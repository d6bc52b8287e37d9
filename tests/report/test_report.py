"""Pictures and pages of scans."""

from pathlib import Path
from urllib.parse import unquote

import numpy as np
import phantoms
import pytest
from browser import needs_chromium, photographed, seen
from links import Links
from PIL import Image
from trees import MODEL, add_result

from bidsseg import __version__
from bidsseg.bids.names import with_extension
from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Scan
from bidsseg.derivative.sidecar_keys import ModelUsed, Sidecar
from bidsseg.files import write_json_atomic
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import load_protocol
from bidsseg.models.card import find_card
from bidsseg.report import participant_page, write_figures
from bidsseg.report.methods import BIDS_APPS, methods
from bidsseg.report.mosaic import Overlay, write_mosaics


def head(orientation: str = "RAS") -> tuple[Volume, np.ndarray]:
    """Return the phantom in any orientation, and its labels."""
    shape = (56, 56, 56)
    affine = phantoms.grid(orientation=orientation, shape=shape)
    return Volume(phantoms.noisy_head(affine, shape), affine), phantoms.head(affine, shape, phantoms.LABEL)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGBA"))[..., :3].astype(int)


def make_results(output: Path, entities: dict[str, str], lesion: bool = False) -> Scan:
    """Write what the page reads of a scan's results."""
    scan = Scan(entities, Path())
    image, labels = head("LAS")
    add_result(output, entities, protocols=("FAST", "FreeSurfer"))
    maps = {"FAST": labels % 4, "FreeSurfer": labels}
    protocols = {name: load_protocol(name) for name in maps}
    write_figures(
        output,
        scan,
        MODEL,
        image=image,
        labels=maps,
        protocols=protocols,
        brain=labels > 0,
        lesion=labels == 4 if lesion else None,
    )
    return scan


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSR", "SAL"])
def test_left_is_left_in_every_orientation(tmp_path: Path, orientation: str) -> None:
    image, labels = head(orientation)
    path = tmp_path / "lesion.png"
    write_mosaics(image, {path: Overlay(np.where(labels == 4, 1, 2 * (labels > 0)), {1: "#ff0000", 2: "#0000ff"})})
    picture = pixels(path)
    red = (picture[..., 0] > 150) & (picture[..., 1] < 100)
    tile = picture.shape[1] / 7
    axial = red[: picture.shape[0] // 3]
    columns = np.flatnonzero(axial.any(axis=0)) % tile / tile
    assert red.any() and columns.max() < 0.5


def test_all_orientations_give_the_same_picture(tmp_path: Path) -> None:
    pictures = []
    for orientation in ("RAS", "LPI", "ASL"):
        image, labels = head(orientation)
        image = Volume(phantoms.head(image.affine, image.shape), image.affine)
        path = tmp_path / f"{orientation}.png"
        write_mosaics(image, {path: Overlay(labels, {})})
        pictures.append(pixels(path))
    for other in pictures[1:]:
        assert other.shape == pictures[0].shape
        assert np.mean(np.abs(other - pictures[0]) > 40) < 0.01


def test_voxels_that_are_not_cubes_keep_the_shape_of_the_head(tmp_path: Path) -> None:
    shapes = []
    for spacing, shape in (((4.0, 4.0, 4.0), (48, 56, 48)), ((2.0, 4.0, 6.0), (96, 56, 32))):
        affine = phantoms.grid(spacing, "LAS", shape)
        labels = phantoms.head(affine, shape, phantoms.LABEL)
        path = tmp_path / "mosaic.png"
        write_mosaics(Volume(phantoms.head(affine, shape), affine), {path: Overlay(labels, {})})
        shapes.append(Image.open(path).size)
    np.testing.assert_allclose(shapes[0], shapes[1], rtol=0.05)


@pytest.mark.parametrize("values", ["constant", "negative", "huge", "bool"])
def test_odd_images_and_empty_labels_have_a_picture(tmp_path: Path, values: str) -> None:
    image, labels = head()
    data = {
        "constant": np.full(image.shape, 7, np.float32),
        "negative": image.data - 1000,
        "huge": image.data * np.float32(1e9),
        "bool": (image.data > 50).astype(np.float32),
    }[values]
    path = tmp_path / "mosaic.png"
    write_mosaics(Volume(data, image.affine), {path: Overlay(np.zeros_like(labels), {}, outline=True)})
    assert pixels(path).shape[2] == 3


def test_colours_lie_over_the_image(tmp_path: Path) -> None:
    """Colours are separate pictures of the same size, transparent where nothing is labelled."""
    image, labels = head()
    base, over = tmp_path / "base.png", tmp_path / "over.png"
    write_mosaics(
        image, {base: Overlay(labels > 0, {1: "#ffffff"}, outline=True), over: Overlay(labels == 4, {1: "#ff0000"})}
    )
    below, above = (Image.open(path).convert("RGBA") for path in (base, over))
    assert below.size == above.size and np.asarray(below)[..., 3].min() == 255
    opacity = np.asarray(above)[..., 3]
    assert set(np.unique(opacity)) == {0, round(255 * 0.45), 255}
    assert (np.asarray(above)[opacity > 0][:, :3] == [255, 0, 0]).all()
    assert 0 < (opacity > 0).mean() < 0.05


def test_an_outline_leaves_the_inside_alone(tmp_path: Path) -> None:
    image, labels = head()
    image = Volume(np.zeros_like(image.data), image.affine)
    for outline in (True, False):
        write_mosaics(image, {tmp_path / f"{outline}.png": Overlay(labels > 0, {1: "#ff0000"}, outline)})
    drawn = {outline: (pixels(tmp_path / f"{outline}.png")[..., 0] > 90).mean() for outline in (True, False)}
    assert 0 < drawn[True] < drawn[False] / 3


def test_the_page_shows_every_scan_and_all_its_links_lead_somewhere(tmp_path: Path) -> None:
    output = tmp_path / "out with spaces"
    scans = [make_results(output, {"subject": "01", "run": run}, lesion=True) for run in ("1", "2")]
    for scan in scans:
        for protocol in ("FAST", "FreeSurfer"):
            (output / output_paths(scan, MODEL, [protocol]).dseg[protocol]).touch()
    page = participant_page(output, scans[1])
    assert page == output / "sub-01.html"
    links = Links(page)
    assert all((page.parent / unquote(link)).is_file() for link in links.found)
    text = page.read_text(encoding="utf-8")
    assert "sub-01_run-1" in text and "sub-01_run-2" in text and "Gray Matter" in text
    assert len(links.pictures) == 8, "the brain, two protocols and lesions of each scan"
    figures = [path.read_bytes() for path in output.glob("sub-01/figures/*.png")]
    assert sorted(links.pictures) == sorted(figures), "a page must work without the folder that it was made in"
    assert not any("//" in link for link in links.found), "a page must work offline"


def test_sessions_have_pages_of_their_own(tmp_path: Path) -> None:
    one, two = (make_results(tmp_path, {"subject": "01", "session": label}) for label in ("1", "2"))
    page = participant_page(tmp_path, one)
    assert page.name == "sub-01_ses-1.html" and "ses-2" not in page.read_text()
    assert participant_page(tmp_path, two).name == "sub-01_ses-2.html"


def test_findings_of_the_guard_are_shown_and_escaped(tmp_path: Path) -> None:
    from bidsseg.files import write_json_atomic

    scan = make_results(tmp_path, {"subject": "01"})
    sidecar = tmp_path / f"sub-01/anat/sub-01_seg-FAST_desc-{MODEL}_dseg.json"
    write_json_atomic(sidecar, {"Quality": 0.5, "InputFindings": ["NAN_VALUES: <3 voxels> were 0"], "Device": "cpu"})
    write_json_atomic(sidecar.with_name(sidecar.name.replace("FAST", "FreeSurfer")), {"Quality": 0.5, "Notes": []})
    text = participant_page(tmp_path, scan).read_text()
    assert "NAN_VALUES: &lt;3 voxels&gt; were 0" in text and "0.500" in text


def test_the_reason_why_the_intracranial_volume_is_not_known_is_on_the_page(tmp_path: Path) -> None:
    add_result(tmp_path, {"subject": "01"})
    scan = Scan({"subject": "01"}, Path())
    assert "<dd>n/a</dd>" in participant_page(tmp_path, scan).read_text()
    sidecar = tmp_path / f"sub-01/anat/sub-01_seg-FAST_desc-{MODEL}_morph.json"
    write_json_atomic(sidecar, {"EstimatedTotalIntracranialVolume": "n/a: the image is skull-stripped"})
    assert "<dd>n/a: the image is skull-stripped</dd>" in participant_page(tmp_path, scan).read_text()


def test_pages_and_pictures_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        page = participant_page(tmp_path, make_results(tmp_path, {"subject": "01"}, lesion=True))
        files = [page, *(tmp_path / "sub-01" / "figures").iterdir()]
        contents.append([path.read_bytes() for path in sorted(files)])
        assert page.stat().st_size < 3e6
        assert not list(tmp_path.rglob("*.part"))
    assert contents[0] == contents[1]


# -- methods -----------------------------------------------------------------------------------------------------------


def record(name: str, *others: str) -> Sidecar:
    """Return the sidecar of a result of shipped models, with the keys that name the methods."""
    sources = [f"bids:raw:sub-01/anat/sub-01_{suffix}.nii.gz" for suffix in find_card(name).inputs]
    models: list[ModelUsed] = [{"Name": card.name, "SHA256": card.sha256} for card in map(find_card, (name, *others))]
    return {"Sources": sources, "Models": models}


def test_the_methods_name_models_and_citations() -> None:
    result = methods(record("ace", "wholebrain"), ["FASTlesion"])
    assert result is not None
    assert result.text.startswith(f"T1w and FLAIR images were segmented with bidsseg {__version__}, a BIDS App")
    assert find_card("ace").description in result.text
    assert "The brain was found by the model wholebrain. Label maps of FASTlesion are on the grid" in result.text
    assert set(result.references) == {BIDS_APPS, *find_card("ace").citation, *find_card("wholebrain").citation}
    assert len(set(result.references)) == len(result.references)


def test_the_methods_are_those_of_the_run_that_made_the_result() -> None:
    more: Sidecar = {"SoftwareVersion": "0.0.9", "OutputSpaces": {"MNI": "deformable", "Colin": "affine"}}
    result = methods({**record(MODEL), **more}, ["FAST"])
    assert result is not None and "bidsseg 0.0.9, a BIDS App" in result.text
    assert "to the template MNI and Colin (TemplateFlow" in result.text and "diffeomorphic demons" in result.text
    assert {entry.split()[0] for entry in result.references} >= {"Ciric", "Mattes", "Vercauteren"}
    result = methods({**record(MODEL), "OutputSpaces": {"MNI": "affine"}}, ["FAST"])
    assert result is not None and "demons" not in result.text
    assert not any(entry.startswith("Vercauteren") for entry in result.references)


def test_a_model_with_only_the_name_of_a_shipped_one_is_not_described() -> None:
    sidecar: Sidecar = {"Models": [{"Name": "wholebrain", "SHA256": "0" * 64}]}
    result = methods(sidecar, ["BrainCOLOR", "FAST", "FreeSurfer"])
    assert result is not None
    assert result.references == (BIDS_APPS,)
    assert "model wholebrain (SHA-256 000000000000). Label maps of BrainCOLOR, FAST and FreeSurfer are" in result.text
    assert methods({}, ["FAST"]) is None


# -- in a browser ------------------------------------------------------------------------------------------------------

STEPS = """
  const [first, second] = document.querySelectorAll(".stack img.top");
  const buttons = [...document.querySelectorAll(".controls button")];
  say("buttons", buttons.map((button) => button.textContent).join(","));
  buttons[1].click();
  say("shown", [first, second].map((picture) => getComputedStyle(picture).display).join(","));
  say("pressed", buttons.map((button) => button.getAttribute("aria-pressed")).join(","));
  const slider = document.querySelector("input[type=range]");
  slider.value = "0.3";
  slider.dispatchEvent(new Event("input"));
  say("opacity", getComputedStyle(second).opacity);
  const head = document.querySelector("table.sortable th"), sorting = head.querySelector("button");
  sorting.focus();
  say("focus", document.activeElement === sorting);
  sorting.click();
  say("sorted", head.getAttribute("aria-sort"));
  say("alt", [...document.images].every((image) => image.alt.length > 10));
  say("loaded", [...document.images].every((image) => image.naturalWidth > 100));
  const copy = document.querySelector("button.copy");
  copy.closest("details").open = true;
  copy.click();
  await pause(200);
  say("selected", getSelection().toString().includes("Gorgolewski"));
"""


@needs_chromium
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    scan = make_results(tmp_path, {"subject": "01"})
    paths = output_paths(scan, MODEL, ("FAST", "FreeSurfer"))
    for dseg in paths.dseg.values():
        sidecar = with_extension(tmp_path / dseg, ".json")
        write_json_atomic(sidecar, {"Quality": 0.9, **record(MODEL, "locator")})
    page = participant_page(tmp_path, scan)
    assert seen(page, STEPS, tmp_path) == {
        "buttons": "FAST,FreeSurfer", "shown": "none,block", "pressed": "false,true", "opacity": "0.3",
        "focus": "true", "sorted": "ascending", "alt": "true", "loaded": "true", "selected": "true", "failures": "",
    }  # fmt: skip
    picture = photographed(page)
    assert 0.01 < (np.ptp(picture, axis=2) > 60).mean() < 0.5, "regions are in colour"
