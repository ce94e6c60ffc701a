"""Measure the time from `emit()` until the dashboard shows the new total, in a real browser.

Usage: python -m benchmarks.live_browser [--quick]

The dashboard is open in Chromium while 2,000 events a second are counted. Each marked event raises the total of one
tile by one; an observer in the page records the time of each new figure in the frame that paints it. The server, the
worker, the read service, the load and the browser run on this machine, with one clock.
"""

import argparse
import random
import shutil
import sys
import time
from bisect import bisect_left

from playwright.sync_api import Page, sync_playwright

from tallystream import Producer

from .live_readers import PORT, serving
from .load import METRIC, zipf
from .measure import percentile
from .processes import SHIPPED, worker
from .server import running

MARKED = "share"

_WATCH = """marked => {
  const tile = [...document.querySelectorAll(".tile")].find(each => each.querySelector("h3").textContent === marked);
  window.seen = [];
  new MutationObserver(() => requestAnimationFrame(() => {
    seen.push([Number(tile.querySelector(".big").textContent.replaceAll(",", "")), Date.now()]);
  })).observe(tile.querySelector(".big"), {childList: true, characterData: true, subtree: true});
}"""


def main() -> None:
    """Emit for 60 s (3 s with `--quick`) with the dashboard open, and print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit("no chromium on PATH")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with (
        running("valkey", quick=quick) as arena,
        worker(arena.url, arena.scratch, SHIPPED),
        serving(arena),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=binary, args=flags)
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{PORT}/")
        page.locator("body[data-state=live]").wait_for()
        page.evaluate(_WATCH, MARKED)
        with Producer(arena.url) as producer:
            emitted = _emit(producer, 3 if quick else 60)
            producer.flush(30, wait="counted")
        took = sorted(_took(page, emitted))
        browser.close()
    print(
        f"emit to painted on the dashboard: p50 {percentile(took, 0.5):.0f} ms, p99 {percentile(took, 0.99):.0f} ms, "
        f"most {took[-1]:.0f} ms over {len(took)} marked events"
    )


def _emit(producer: Producer, seconds: float) -> list[float]:
    """Emit about 2,000 events a second; return the time of each marked event, in milliseconds since 1970."""
    emitted: list[float] = []
    chance = random.Random(1)
    subjects = iter(zipf(int(seconds * 2_000)))
    for subject in subjects:
        producer.emit(METRIC, subject)
        if chance.random() < 0.01:
            emitted.append(time.time() * 1000)
            producer.emit(MARKED, "article:1")
        time.sleep(0.0004)
    return emitted


def _took(page: Page, emitted: list[float]) -> list[float]:
    """Return the milliseconds from each marked event to the first figure on the page that includes it."""
    page.wait_for_function("most => seen.some(([value]) => value >= most)", arg=len(emitted))
    seen = page.evaluate("seen")
    values = [value for value, _ in seen]
    return [seen[bisect_left(values, number)][1] - at for number, at in enumerate(emitted, 1)]


if __name__ == "__main__":
    main()
