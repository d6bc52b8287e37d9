"""The three-dimensional viewer: content of the page, and rendering in a browser."""

import base64
import colorsys
import gzip
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import phantoms
import pytest
from browser import needs_chromium, photographed, seen
from fake_model import make_app

from bidsseg.bids.outputs import output_paths
from bidsseg.bids.scan import Scan
from bidsseg.image.volume import Volume
from bidsseg.labels.protocol import BACKGROUND, Protocol, Region, load_protocol
from bidsseg.report import viewer, write_viewer

SHAPE = (70, 60, 50)


def content(page: Path) -> dict[str, Any]:
    """Return the image and the label maps in a page."""
    found = re.search(r'id="content">\s*(.*?)\s*</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def nifti(text: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def head(orientation: str = "RAS") -> tuple[Volume, np.ndarray]:
    """Return a phantom at one side of its grid, and its labels."""
    affine = phantoms.grid(orientation=orientation, shape=SHAPE)
    labels = phantoms.head(affine, SHAPE, phantoms.LABEL)
    return Volume(phantoms.noisy_head(affine, SHAPE), affine), labels


def many(n: int) -> Protocol:
    """Return regions in clear colours, with gaps between their values; the first is blue."""
    colors = [
        "#0000ff",
        *(f"#{''.join(f'{round(255 * c):02x}' for c in colorsys.hsv_to_rgb(i / n / 2, 1, 1))}" for i in range(n)),
    ]
    others = [Region(3 * i + 4, f"Region {i}", f"R{i}", colors[i], None) for i in range(n)]
    return Protocol("Many", (Region(0, "Background", "BG", "#000000", 0), *others))


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "ASL"])
@pytest.mark.parametrize("most", [2e7, 4e3])
def test_every_region_is_at_its_place(
    orientation: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer, "MOST_VOXELS", most)
    image, labels = head(orientation)
    page, protocol = tmp_path / "page.html", load_protocol("FreeSurfer")
    values = np.array([0, *protocol.indices[-int(labels.max()) :]])[labels]
    write_viewer(
        page, "sub-01", image, labels={"FreeSurfer": values}, protocols={"FreeSurfer": protocol}, lesion=labels == 4
    )
    shown = content(page)
    assert [overlay["name"] for overlay in shown["overlays"]] == ["FreeSurfer", "lesion"]
    for overlay, truth, regions in zip(
        shown["overlays"], (values, labels == 4), (protocol, load_protocol("lesion")), strict=True
    ):
        small = nifti(overlay["data"])
        at = nib.affines.apply_affine(np.linalg.inv(image.affine) @ small.affine, np.argwhere(np.ones(small.shape)))
        names = [overlay["colors"]["labels"][i] for i in np.asarray(small.dataobj).ravel()]
        x, y, z = np.round(at).astype(int).T
        assert np.allclose(at, np.round(at), atol=1e-3)
        assert names == [regions.region(int(value)).name for value in truth[x, y, z]]
        assert small.shape == nifti(shown["image"]).shape and np.prod(small.shape) < min(1.4 * most, labels.size)
        assert (np.asarray(small.dataobj) > 0).any()


def test_labels_beyond_16_bits_are_shown(tmp_path: Path) -> None:
    image, labels = head()
    regions = (BACKGROUND, *(Region(70000 + i, f"Region {i}", f"R{i}", "#ff0000", None) for i in range(4)))
    values = np.array([0, *(region.index for region in regions[1:])], np.uint32)[labels]
    write_viewer(
        tmp_path / "page.html", "sub-01", image, labels={"Own": values}, protocols={"Own": Protocol("Own", regions)}
    )
    shown = np.asarray(nifti(content(tmp_path / "page.html")["overlays"][0]["data"]).dataobj)
    assert np.bincount(shown.ravel())[1:].tolist() == np.bincount(labels.ravel())[1:].tolist()


def test_no_region_touches_the_border_of_the_picture(tmp_path: Path) -> None:
    image, labels = head()
    write_viewer(
        tmp_path / "page.html", "sub-01", image, labels={"FAST": labels % 4}, protocols={"FAST": load_protocol("FAST")}
    )
    inside = np.asarray(nifti(content(tmp_path / "page.html")["overlays"][0]["data"]).dataobj) > 0
    assert inside.sum() == (labels % 4 > 0).sum()


STEPS = """
  await pause(2500);
  const buttons = [...document.querySelectorAll("button")], told = document.querySelector("output");
  say("first", told.textContent.split(" · ")[0]);
  buttons[1].click();
  say("second", told.textContent.split(" · ")[0]);
  say("place", /RAS -?\\d+, -?\\d+, -?\\d+ mm/.test(told.textContent));
  buttons[3].click();
  say("pressed", buttons.map((button) => button.getAttribute("aria-pressed")).join(","));
"""


@needs_chromium
def test_a_browser_draws_it(tmp_path: Path) -> None:
    image, _ = head()
    protocol = many(300)
    block = np.zeros(SHAPE, int)
    block[20:50, 20:40, 15:35] = protocol.indices[250]
    page = tmp_path / "page.html"
    maps = {"Many": block, "FAST": (block > 0) * 2}
    write_viewer(page, "sub-01", image, labels=maps, protocols={"Many": protocol, "FAST": load_protocol("FAST")})
    assert seen(page, STEPS, tmp_path) == {
        "first": "Region 249", "second": "Gray Matter", "place": "true",
        "pressed": "false,true,false,true", "failures": "",
    }  # fmt: skip
    picture = photographed(page)[150:]
    wanted = np.array([int(protocol.regions[250].color[i : i + 2], 16) for i in (1, 3, 5)])
    strong = picture[np.ptp(picture, axis=2) > 60]
    hue = strong / np.linalg.norm(strong, axis=1, keepdims=True) @ wanted / np.linalg.norm(wanted)
    assert (hue > 0.85).mean() > 0.8, "most of what has a colour has that of the region"


def test_it_is_made_when_asked_for(
    tmp_path: Path, make_bids: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(tmp_path, make_bids(), monkeypatch)
    paths = output_paths(Scan({"subject": "01"}, Path()), "wholebrain", ["FAST"], viewer=True)
    page = app.output / str(paths.viewer)
    assert app("--participant-label", "01") == 0 and not page.exists()
    assert app("--participant-label", "01", "--viewer") == 0
    assert content(page)["overlays"]
    text = (app.output / paths.report).read_text()
    assert f'href="{paths.viewer}"' in text
    before = page.stat().st_mtime_ns
    assert app("--participant-label", "01", "--viewer") == 0 and page.stat().st_mtime_ns == before


def test_the_library_is_the_one_that_its_readme_names() -> None:
    readme = viewer.NIIVUE.with_name("README.md").read_text()
    assert hashlib.sha256(viewer.NIIVUE.read_bytes()).hexdigest() in readme
    assert "</script" not in viewer.NIIVUE.read_text(encoding="utf-8").lower()
