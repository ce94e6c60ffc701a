"""Take the screenshot of the dashboard for the README, with a day of invented counts and a load during the screenshot.

python -m docs._generate.dashboard_picture
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from playwright.sync_api import sync_playwright

from tallystream import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving
from tallystream_worker.settings.settings import RedisSettings, ServeSettings, Settings, SnapshotSettings

if TYPE_CHECKING:
    from collections.abc import Callable

PICTURE: Final = Path(__file__).parents[1] / "images" / "dashboard.png"

_SUBJECTS: Final = (
    "article:redis", "article:exact", "video:launch", "article:lua", "post:hello", "article:lag", "video:demo",
    "article:votes", "post:roadmap", "article:limits", "post:faq", "article:audit",
)  # fmt: skip
_SHARES: Final = {"view": 0.78, "like": 0.12, "share": 0.05, "clap": 0.03, "read": 0.02}
_RATE: Final = 600
_SECONDS: Final = 70
"""Seconds of load before the screenshot: the small chart of the rate shows a minute."""


def main() -> None:
    """Start a server, a worker, the read service and a browser, and write the screenshot to `PICTURE`."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or sys.exit("no chromium on PATH")
    with tempfile.TemporaryDirectory() as folder, EmbeddedServer(Path(folder)) as server:
        settings = Settings(redis=RedisSettings(url=server.url), serve=ServeSettings(port=0))
        settings = replace(settings, snapshot=SnapshotSettings(url=str(Path(folder, "snapshot.sqlite"))))
        with (
            counting(settings, logs.configure(quiet=True)),
            serving(settings) as url,
            Producer(server.url) as producer,
            sync_playwright() as playwright,
        ):
            _past(producer)
            producer.flush(60, wait="counted")
            browser = playwright.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(url)
            _while_loaded(producer, lambda: page.wait_for_timeout(_SECONDS * 1000))
            page.screenshot(path=PICTURE, full_page=True)
            browser.close()


def _past(producer: Producer) -> None:
    """Emit the events of the past day, with fewer events at night."""
    draw, now = random.Random(7), time.time()  # noqa: S311  # a fixed seed gives the same picture
    for hour in range(1, 24):
        daylight = 1.0 - 0.6 * abs((hour + 6) % 24 - 12) / 12
        for place, subject in enumerate(_SUBJECTS, 1):
            for metric, share in _SHARES.items():
                amount = int(40_000 * daylight * share * draw.uniform(0.8, 1.2) / place)
                producer.emit(metric, subject, amount, at=now - 3600 * hour)
    for user in range(400):
        subject = _SUBJECTS[min(int(draw.expovariate(0.4)), len(_SUBJECTS) - 1)]
        producer.emit("vote", subject, 1 if draw.random() < 0.85 else -1, actor=f"user:{user}")  # noqa: PLR2004
        producer.emit("api-call", f"key:{user % 5}")


def _while_loaded(producer: Producer, looks: Callable[[], None]) -> None:
    done = threading.Event()

    def load() -> None:
        draw = random.Random(8)  # noqa: S311
        weights = [1 / place for place in range(1, len(_SUBJECTS) + 1)]
        while not done.wait(1 / _RATE):
            (metric,) = draw.choices(list(_SHARES), list(_SHARES.values()))
            (subject,) = draw.choices(_SUBJECTS, weights)
            producer.emit(metric, subject, actor=f"user:{draw.randrange(5000)}")

    thread = threading.Thread(target=load)
    thread.start()
    try:
        looks()
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
