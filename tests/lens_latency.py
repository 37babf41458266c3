"""`python -m tests.lens_latency lens.html`: how long the page takes to answer the pointer, in headless Chromium.

From a pointer event on a character of the text, or on a head, until after the frame that shows the answer.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from tests.helpers.browser import chromium

LIMIT = 50  # milliseconds

HOVER = """
async (selector) => {
  const milliseconds = [];
  for (const element of document.querySelectorAll(selector)) {
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    element.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
    await new Promise((shown) => requestAnimationFrame(() => {
      const after = new MessageChannel();
      after.port1.onmessage = shown;
      after.port2.postMessage(0);
    }));
    milliseconds.push(performance.now() - start);
  }
  return milliseconds;
}
"""


def main() -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        for name, selector in (("characters", "#text > * + *"), ("heads", "#heads [role=gridcell]")):
            times = page.evaluate(HOVER, selector)
            if times:
                late = sum(time > LIMIT for time in times)
                middle, most = statistics.median(times), max(times)
                print(f"{len(times)} {name}: median {middle:.0f} ms, most {most:.0f}, {late} above {LIMIT}")


if __name__ == "__main__":
    main()
