"""Fixtures for the dashboard in Chromium: a server, a worker and the read service, all in this process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect, sync_playwright

from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.server.embedded import EmbeddedServer
from tallystream_worker.service.server import serving
from tests.http_service import settings_for
from tests.servers import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

    from tallystream_worker.settings.settings import Settings

SCREENSHOTS = Path("build/screenshots")

expect.set_options(timeout=20_000)  # a deadline: a page may be slow on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Provide Chromium for one module; its event loop must not run while tests of other modules run theirs."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or missing("no chromium on PATH", unless="CI")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Provide the settings of a running system: an embedded server with a worker."""
    with EmbeddedServer(tmp_path_factory.mktemp("browser")) as server:
        settings = settings_for(server.url, read_timeout=5)
        with counting(settings, logs.configure(quiet=True)):
            yield settings


@pytest.fixture(scope="module")
def producer(settings: Settings) -> Iterator[Producer]:
    """Provide a producer for the running system."""
    with Producer(settings.redis.url) as producer:
        yield producer


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    """Provide the URL of the dashboard of the running system."""
    with serving(settings) as url:
        yield url


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Provide a function that opens a page; a script error on any of the pages fails the test."""
    faults: list[str] = []
    contexts = []

    def visit(url: str, *, width: int = 1280, height: int = 900, scheme: str = "light") -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        page.goto(url)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture
def keep() -> Callable[[Page, str], None]:
    """Provide a function that saves a screenshot of a page as build output."""

    def keep(page: Page, name: str) -> None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)

    return keep
