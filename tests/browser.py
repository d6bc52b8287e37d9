"""Pages in a real browser: Debian's chromium, without a window and without a network."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
FRAME = """
<script>
const failures = [];
window.addEventListener("error", (event) => failures.push(event.message || `not loaded: ${event.target.src}`), true);
window.addEventListener("load", () => setTimeout(async () => {
  const say = (name, value) => document.body.append(Object.assign(document.createElement("pre"),
    { className: "seen", textContent: `${name}=${value}` }));
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  STEPS
  say("failures", failures.join("; "));
}, 100));
</script>
"""


WORDS = (
    str(CHROMIUM), "--headless", "--no-sandbox", "--disable-background-networking", "--disable-sync",
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--virtual-time-budget=5000",
)  # fmt: skip


def seen(page: Path, steps: str, folder: Path) -> dict[str, str]:
    """What a script told, by ``say(name, value)``, that ran in the page; and the errors of the page as ``failures``.

    Args:
        folder: for what the browser keeps.
    """
    tried = page.with_name(f"tried-{page.name}")
    tried.write_text(page.read_text().replace("<head>", "<head>" + FRAME.replace("STEPS", steps), 1))
    words = [*WORDS, "--dump-dom", f"--user-data-dir={folder / 'profile'}", tried.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    tried.unlink()
    return dict(line.split("=", 1) for line in re.findall(r'<pre class="seen">(.*?)</pre>', done.stdout))


def photographed(page: Path, folder: Path) -> np.ndarray:
    """The page as it looks, RGB (height, width, 3)."""
    picture = folder / "page.png"
    words = [*WORDS, f"--screenshot={picture}", "--window-size=1300,900", f"--user-data-dir={folder / 'profile'}"]
    subprocess.run([*words, page.as_uri()], capture_output=True, timeout=120, check=True)
    return np.asarray(Image.open(picture).convert("RGB")).astype(int)
