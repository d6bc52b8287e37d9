"""Pages in a real browser: Debian's chromium, without a window and without a network."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

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


def seen(page: Path, steps: str, folder: Path) -> dict[str, str]:
    """What a script told, by ``say(name, value)``, that ran in the page; and the errors of the page as ``failures``.

    Args:
        folder: for what the browser keeps.
    """
    tried = page.with_name(f"tried-{page.name}")
    tried.write_text(page.read_text().replace("<head>", "<head>" + FRAME.replace("STEPS", steps), 1))
    words = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    words += [f"--user-data-dir={folder / 'profile'}", "--disable-background-networking", "--disable-sync"]
    done = subprocess.run([*words, tried.as_uri()], capture_output=True, text=True, timeout=120)
    tried.unlink()
    return dict(line.split("=", 1) for line in re.findall(r'<pre class="seen">(.*?)</pre>', done.stdout))
