"""Take screenshots of the pages of `make demo` for the documentation; they show the template brain of nilearn.

    python docs/screenshots.py OUTPUT_DIR

OUTPUT_DIR is the output of the levels participant and group on the demonstration's dataset, with ``--viewer``. The
script writes docs/images/*.png and docs/result.png. It needs Chromium, but no network.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent
PICTURES = {
    "scan": ("sub-template.html", (1300, 1000)),
    "cohort": ("group.html", (1300, 980)),
    "viewer": ("sub-template/figures/sub-template_desc-wholebrain_viewer.html", (1300, 760)),
}
"""Page of each picture and size of the browser window (pixels)."""
RESULT = "sub-template/figures"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-background-networking", "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
)  # fmt: skip
"""Flags of a browser without window and network."""
LIGHT = "--blink-settings=preferredColorScheme=1"
COLORS = 128
LARGEST_KB = 200


def main(output: Path) -> None:
    """Write all pictures. SystemExit if a page or the browser is missing, or if a picture is too large."""
    if CHROMIUM is None:
        sys.exit("Chromium is needed: apt-get install chromium")
    for name, (page, size) in PICTURES.items():
        if not (output / page).is_file():
            sys.exit(f"{output / page} is missing: run participant and group with --viewer")
        save(photograph((output / page).resolve(), size), DOCS / "images" / f"{name}.png")
    save(result(output / RESULT), DOCS / "result.png")


def photograph(page: Path, size: tuple[int, int]) -> Image.Image:
    """Return a screenshot of a page in a window of this width and height."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "page.png"
        words = [LIGHT, f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}", f"--screenshot={picture}"]
        subprocess.run([str(CHROMIUM), *FLAGS, *words, page.as_uri()], check=True, capture_output=True, timeout=300)
        return Image.open(picture).convert("RGB")


def result(figures: Path) -> Image.Image:
    """Return the picture of the scan with the BrainCOLOR regions overlaid, as the page shows it."""
    (below,), (above,) = figures.glob("*seg-brain_*.png"), figures.glob("*seg-BrainCOLOR_*.png")
    base = Image.open(below).convert("RGBA")
    return Image.alpha_composite(base, Image.open(above).convert("RGBA")).convert("RGB")


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture with few colours, which keeps the file small."""
    path.parent.mkdir(exist_ok=True)
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    kilobytes = path.stat().st_size // 1000
    if kilobytes > LARGEST_KB:
        sys.exit(f"{path} has {kilobytes} kB, more than {LARGEST_KB}")
    print(f"{path}: {picture.width}x{picture.height} pixels, {kilobytes} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
