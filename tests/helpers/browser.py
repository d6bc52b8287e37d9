"""Pages in a real browser: headless Chromium of Debian, without a network."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from screenshots import CHROMIUM, FLAGS, photograph

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
FRAME = """
<script>
const failures = [];
window.addEventListener("error", (event) => failures.push(event.message || `not loaded: ${event.target.src}`), true);
window.addEventListener("unhandledrejection", (event) => failures.push(`rejected: ${event.reason}`));
console.error = (...words) => failures.push(words.join(" "));
window.addEventListener("load", () => setTimeout(async () => {
  const say = (name, value) => document.body.append(Object.assign(document.createElement("pre"),
    { className: "seen", textContent: `${name}=${value}` }));
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  STEPS
  say("failures", failures.join("; "));
}, 100));
</script>
"""


CONTRAST = """
  const light = (color) => {
    const linear = (v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = color.slice(0, 3).map(linear);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (color, below) => {
    canvas.fillStyle = `rgb(${below.join(",")})`;
    canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const sheet = document.body.appendChild(document.createElement("div"));
  sheet.style.background = "Canvas";
  const paper = paint(getComputedStyle(sheet).backgroundColor, [255, 255, 255]);
  const ground = (element) => element
    ? paint(getComputedStyle(element).backgroundColor, ground(element.parentElement)) : paper;
  const pale = [];
  let texts = 0;
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.closest("script, style, .seen")) continue;
    texts += 1;
    const below = ground(element);
    let above = paint(getComputedStyle(element).color, below);
    for (let e = element; e; e = e.parentElement) {
      const opacity = Number(getComputedStyle(e).opacity);
      above = above.map((value, i) => opacity * value + (1 - opacity) * below[i]);
    }
    const [low, high] = [light(below), light(above)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) pale.push(`${element.tagName} ${contrast.toFixed(2)} ${element.textContent.slice(0, 20)}`);
  }
  say("texts", texts);
  say("dark", matchMedia("(prefers-color-scheme: dark)").matches);
  say("pale", [...new Set(pale)].join("; "));
"""


def seen(page: Path, steps: str, folder: Path, dark: bool = False) -> dict[str, str]:
    """Return the values that a page recorded by ``say(name, value)``, and its errors as ``failures``.

    Args:
        folder: folder for the profile of the browser.
        dark: whether the browser prefers dark pages.
    """
    tried = page.with_name(f"tried-{page.name}")
    tried.write_text(page.read_text().replace("<head>", "<head>" + FRAME.replace("STEPS", steps), 1))
    wish = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    words = [str(CHROMIUM), *FLAGS, wish, "--dump-dom", f"--user-data-dir={folder / 'profile'}", tried.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    tried.unlink()
    return dict(line.split("=", 1) for line in re.findall(r'<pre class="seen">(.*?)</pre>', done.stdout))


def photographed(page: Path) -> np.ndarray:
    """Return a screenshot of a page, RGB (height, width, 3)."""
    return np.asarray(photograph(page, (1300, 900))).astype(int)
