"""Pages in headless Chromium: what they say of themselves at a width, in light and dark."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


def find_chromium() -> str:
    """Path of the browser; the test is skipped without one, and fails without one in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("LLMJP_CI"):
            pytest.fail("CI looks at pages in Chromium: install chromium")
        pytest.skip("no chromium here")
    return found


def browse(chromium: str, page: Path, profile: Path, *flags: str) -> str:
    """Run headless Chromium on a page; its standard output, and what the page's console says after it."""
    base = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
    # Chromium asks its maker for updates; nothing here may reach a network.
    base += ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking", "--no-first-run"]
    base += ["--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [chromium, *base, "--virtual-time-budget=1000", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return "\n".join([done.stdout, *(line for line in done.stderr.splitlines() if "CONSOLE" in line)])


MEASURE = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const wide = [...document.querySelectorAll("body *")].filter(one =>
    !one.closest(".scroll") && one.getBoundingClientRect().right > innerWidth + 0.5);
  const root = document.documentElement;
  const small = [...document.querySelectorAll("p, td, dd, li, .plot span")].filter(one =>
    one.textContent.trim() && parseFloat(getComputedStyle(one).fontSize) < 11);
  const pairs = [...document.querySelectorAll(".scroll > .pairs")].filter(one =>
    one.scrollWidth > one.parentElement.clientWidth);
  const said = {pairs: pairs.length, loads: performance.getEntriesByType("resource").length,
    inner: innerWidth, scroll: root.scrollWidth, wide: wide.length, small: small.length,
    page: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color};
  root.setAttribute("data-said", Object.entries(said).map(pair => pair.join("=")).join(";"));
});
</script>
"""
POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
)
FRAME = (
    '<!doctype html><body style="margin:0">'
    '<iframe id="f" src="inner.html" style="border:0;width:{width}px;height:3000px"></iframe>'
)


def measure(chromium: str, page: str, folder: Path, width: int, *, dark: bool) -> dict[str, str]:
    """What a copy of the page says of itself at a width; headless windows are never under 500 px, frames are."""
    scheme = "prefers-color-scheme: dark"
    copy = page.replace(f"({scheme})", "all" if dark else "not all")  # the scheme, whatever the machine's
    assert scheme not in copy
    assert POLICY in copy
    copy = copy.replace(POLICY, "")  # it would forbid the script that measures
    (folder / "inner.html").write_text(copy.replace("</body>", MEASURE + "</body>"), encoding="utf-8")
    report = """<script>addEventListener("load", () => setTimeout(() => document.body.setAttribute("data-said",
      document.getElementById("f").contentDocument.documentElement.dataset.said), 100));</script>"""
    (folder / "frame.html").write_text(FRAME.format(width=width) + report, encoding="utf-8")
    dom = browse(
        chromium,
        folder / "frame.html",
        folder / "profile",
        f"--window-size={max(width, 500)},3000",
        "--allow-file-access-from-files",
        "--dump-dom",
    )
    found = re.search(r'data-said="([^"]+)"', dom)
    assert found, dom[:500]
    return dict(pair.split("=", 1) for pair in found.group(1).split(";"))


def luminance(colour: str) -> float:
    """Relative luminance of an rgb() colour (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
