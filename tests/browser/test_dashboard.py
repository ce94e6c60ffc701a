"""Tests of the dashboard in a real browser."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tallystream.client.connect import connect
from tallystream.producing.producer import Producer
from tallystream.rules.alerts import Alert
from tallystream.rules.metrics import Metric, Rules
from tallystream.storage.deployment_hash import SNAPSHOT_AT, SNAPSHOT_EVERY
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.service.server import serving
from tests.http_service import settings_for
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Locator, Page

    from tallystream_worker.server.embedded import EmbeddedServer
    from tallystream_worker.settings.settings import Settings

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "__proto__",
    "article:\"'><script>alert(1)</script>",
    "a*b",
]
DASH = "\u2013"
TOO_WIDE = """[...document.querySelectorAll("body *")]
  .filter(each => each.getBoundingClientRect().right > innerWidth + 1 && !each.closest(".scroll, .skip, .hidden"))
  .map(each => each.outerHTML.slice(0, 80))"""
CAPTION = "view of the five leading subjects, {}; the table below has the figures"

COLOURS = """canvas => {
  const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Map();
  for (let n = 0; n < data.length; n += 4)
    if (data[n + 3] > 200) { const key = data.slice(n, n + 3).join(); seen.set(key, (seen.get(key) ?? 0) + 1); }
  return [...seen.values()].filter(pixels => pixels > 100).length;
}"""


@pytest.fixture(scope="module", autouse=True)
def counted(producer: Producer) -> None:
    """Emit events for every part of the dashboard, and wait until they are counted."""
    now = time.time()
    for hour in range(20):
        for place in range(1, 7):
            producer.emit("view", f"article:{place}", 100 - 10 * place + hour, at=now - 3600 * hour)
    for place in range(1, 30):
        producer.emit("view", f"article:{place}", actor=f"u{place}")
        producer.emit("like", f"article:{place}", 40 - place)
    for user in range(10):
        producer.emit("vote", "article:1", 1 if user < 7 else -1, actor=f"u{user}")
    for _ in range(12):
        producer.emit("api-call", "article:1")
    for name in HOSTILE:
        producer.emit("share", name, 5)
    producer.flush(20, wait="counted")


def chart_colours(page: Page) -> int:
    """Return the number of colours in the chart that cover more than a few pixels."""
    return page.locator(".trends canvas").evaluate(COLOURS)


def tile_of(page: Page, metric: str) -> Locator:
    """Return the figure of the tile of a metric."""
    return page.locator(".tile", has=page.get_by_role("heading", name=metric, exact=True)).locator(".big")


def value_of(page: Page, metric: str) -> int:
    """Return the number in the tile of a metric."""
    return int(tile_of(page, metric).inner_text().replace(",", ""))


def ready(page: Page) -> Page:
    """Wait until the page is live and shows figures, and return it."""
    expect(page.locator("#state-text")).to_have_text("live")
    expect(page.locator(".tile .big").first).not_to_have_text(DASH)
    return page


def test_figures_tick_without_a_reload(visit: Callable[..., Page], url: str, producer: Producer) -> None:
    """Totals, leaders and the rate change without a reload, and the ledger balances."""
    page = ready(visit(url))
    page.evaluate("window.sameHere = true")
    before = value_of(page, "view")
    producer.emit("view", "article:1", 1_000)
    producer.flush(10, wait="counted")
    expect(tile_of(page, "view")).to_have_text(f"{before + 1_000:,}")
    expect(page.get_by_role("list", name="Leaders of view").locator("li").first).to_contain_text("article:1")
    expect(page.locator(".huge")).not_to_have_text(DASH)
    expect(page.locator(".ledger dd")).to_have_text("balances")
    expect(page.locator(".workers dd")).to_have_text("1")
    assert page.evaluate("window.sameHere")


def test_a_subject_ticks_and_shows_its_rules(
    visit: Callable[..., Page], url: str, producer: Producer, keep: Callable[[Page, str], None]
) -> None:
    """The page of a subject shows live totals, ratios, unique actors, votes and limits."""
    page = ready(visit(f"{url}/#/subject/{quote('article:1', safe='')}"))
    facts = page.locator(".rules")
    expect(facts).to_contain_text("988 left")
    expect(facts).to_contain_text("7 up, 3 down")
    expect(facts).to_contain_text("engagement rate")
    expect(facts).to_contain_text("Unique actors, view")
    before = value_of(page, "like")
    producer.emit("like", "article:1", 3)
    expect(tile_of(page, "like")).to_have_text(str(before + 3))
    keep(page, "subject")


def test_charts_draw(visit: Callable[..., Page], url: str, keep: Callable[[Page, str], None]) -> None:
    """The trends show five lines in five colours and axes with times, for hours, days and months."""
    page = ready(visit(url))
    chart = page.locator(".trends canvas")
    expect(chart).to_have_attribute("aria-label", CAPTION.format("24 hours"))
    until(lambda: chart_colours(page) >= 5, what="the lines of the chart")
    assert page.locator(".spark").evaluate("canvas => canvas.width") > 100
    for span in ("30 days", "12 months"):
        page.get_by_role("button", name=span).click()
        expect(chart).to_have_attribute("aria-label", CAPTION.format(span))
        until(lambda: chart_colours(page) >= 3, what="the lines of the chart")
    page.get_by_text("As a table").click()
    expect(page.locator(".trends table tbody tr")).to_have_count(12)
    keep(page, "desktop-light")


def test_windows_of_the_leaders(visit: Callable[..., Page], url: str) -> None:
    """Leaders are shown for the hour, the day, 7 days and all time; a list states if its window is not kept."""
    page = ready(visit(url))
    leaders = page.get_by_role("list", name="Leaders of view")
    expect(leaders.locator("li").first).to_contain_text("article:1")
    sums = set()
    for window in ("All time", "7 days", "Day", "Hour"):
        page.get_by_role("button", name=window, exact=True).click()
        expect(leaders.locator("li").first).to_contain_text("article:1")
        sums.add(leaders.locator("li .value").first.get_attribute("title"))
    assert len(sums) >= 2
    expect(page.locator(".board", has_text="like").first).to_contain_text("No hour window is kept for like")


def test_a_subject_is_found(visit: Callable[..., Page], url: str, producer: Producer) -> None:
    """The search finds a leader by a prefix, with the keyboard alone, and any subject by its whole name."""
    producer.emit("read", "nobody/leads here")
    producer.flush(10, wait="counted")
    page = ready(visit(url))
    page.keyboard.press("/")
    page.keyboard.type("article:1")
    expect(page.get_by_role("option").first).to_contain_text("article:1")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("article:1")
    page.locator("#query").fill("nobody/leads here")
    page.locator("#query").press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("nobody/leads here")
    expect(tile_of(page, "read")).to_have_text("1")


def test_hostile_names_are_text(visit: Callable[..., Page], url: str) -> None:
    """The name of a subject is shown as text in lists, search and page, and never runs as a script."""
    page = ready(visit(url))
    shared = page.get_by_role("list", name="Leaders of share")
    for name in HOSTILE:
        expect(shared.get_by_text(name, exact=True)).to_have_count(1)
    for name in HOSTILE:
        page.goto(f"{url}/#/subject/{quote(name, safe='')}")
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(tile_of(page, "share")).to_have_text("5")
    page.locator("#query").fill("<img")
    expect(page.get_by_role("option").first).to_contain_text(HOSTILE[0])
    assert page.title() != "owned"
    assert page.locator("main img, main script, #found img").count() == 0


def test_dark_and_light(visit: Callable[..., Page], url: str, keep: Callable[[Page, str], None]) -> None:
    """The colours follow the system, and a choice of the user survives a reload."""
    background = "getComputedStyle(document.body).backgroundColor"
    page = ready(visit(url, scheme="dark"))
    dark = page.evaluate(background)
    until(lambda: chart_colours(page) >= 5, what="the lines of the chart")
    keep(page, "desktop-dark")
    page.get_by_role("button", name="Dark colours").click()
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    ready(page)
    assert page.evaluate(background) == light
    expect(page.get_by_role("button", name="Dark colours")).to_have_attribute("aria-pressed", "false")


def test_stale_when_the_service_stops(
    visit: Callable[..., Page], settings: Settings, producer: Producer, keep: Callable[[Page, str], None]
) -> None:
    """Without the service the page shows since when it is stale, greys its figures, and recovers by itself."""
    with contextlib.ExitStack() as service:
        url = service.enter_context(serving(settings))
        page = ready(visit(url))
        service.close()
        expect(page.locator("#banner")).to_contain_text("Stale since")
        until(
            lambda: page.locator(".huge").evaluate("huge => getComputedStyle(huge).opacity < 0.5"), what="grey figures"
        )
        keep(page, "stale")
        before = value_of(page, "view")
        producer.emit("view", "article:1", 11)
        port = int(url.rpartition(":")[2])
        service.enter_context(serving(settings_for(settings.redis.url, port=port)))
        expect(page.locator("#state-text")).to_have_text("live", timeout=15_000)
        expect(page.locator("#banner")).to_be_hidden()
        until(lambda: value_of(page, "view") >= before + 11, what="the figure of after the break")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("where", ["", "#/subject/article%3A1"])
def test_axe_finds_nothing_serious(visit: Callable[..., Page], url: str, scheme: str, where: str) -> None:
    """Axe finds no serious or critical accessibility problem, contrast included, in either colour scheme."""
    page = ready(visit(f"{url}/{where}", scheme=scheme))
    found = Axe().run(page).response["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in grave] == []


def test_everything_can_be_reached_by_keyboard(visit: Callable[..., Page], url: str) -> None:
    """Tab moves from the skip link through search, colours and windows to the leaders; Enter opens a leader."""
    page = ready(visit(url))
    expect(page.get_by_role("list", name="Leaders of view").locator("li").first).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        if reached[-1].startswith("article:"):
            break
    assert {"query", "theme", "Hour", "All time"} <= set(reached)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(reached[-1])


@pytest.mark.parametrize("where", ["", "#/subject/article%3A1"])
def test_a_phone_needs_no_sideways_scrolling(
    visit: Callable[..., Page], url: str, where: str, keep: Callable[[Page, str], None]
) -> None:
    """At widths of 390 and 320 pixels, everything fits the width."""
    for width in (390, 320):
        page = ready(visit(f"{url}/{where}", width=width, height=844))
        expect(page.locator(".trends canvas")).to_be_visible()
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        keep(page, f"phone-{width}{'-subject' if where else ''}")


def test_a_token_is_asked_for(visit: Callable[..., Page], settings: Settings) -> None:
    """If the service needs a token, the page asks for it, rejects a wrong one, and shows no figures before."""
    guarded = settings_for(settings.redis.url, read_token="open-sesame-of-forty-characters-at-least")  # noqa: S106  # a test's
    with serving(guarded) as url:
        page = visit(url)
        dialog = page.get_by_role("dialog")
        expect(dialog).to_be_visible()
        assert page.locator(".tile").count() == 0
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#login-wrong")).not_to_be_empty()
        page.get_by_role("textbox", name="Token").fill("open-sesame-of-forty-characters-at-least")
        page.get_by_role("button", name="Sign in").click()
        ready(page)
        expect(dialog).to_be_hidden()


def test_what_fires_is_shown(visit: Callable[..., Page], fresh_server: Callable[..., EmbeddedServer]) -> None:
    """A firing alert is shown above the figures, with its subject as text."""
    base = settings_for(fresh_server().url)
    rules = Rules({"view": Metric(top=10)}, alert=(Alert("viral", "view", subject="*", above=5, clear=4),))
    watched = replace(base, rules=rules)
    with counting(watched, logs.configure(quiet=True)), serving(watched) as url, Producer(base.redis.url) as producer:
        page = ready(visit(url))
        expect(page.locator(".alerts")).to_be_hidden()
        producer.emit("view", HOSTILE[0], 6)
        expect(page.locator(".alerts")).to_contain_text("1 alert is firing")
        expect(page.locator(".alerts a")).to_have_text(HOSTILE[0])


def test_what_has_expired_is_shown(visit: Callable[..., Page], fresh_server: Callable[..., EmbeddedServer]) -> None:
    """If part of a range is not kept, a line is dashed, a cell contains "expired", and lists and cards are marked."""
    base = settings_for(fresh_server().url)
    metric = Metric(windows=("hour",), retention={"hour": "3h"}, unique="hour", top=10)
    rules = Rules({"view": metric}, alert=(Alert("many", "view", over="2d", above=5),))
    watched = replace(base, rules=rules)
    with counting(watched, logs.configure(quiet=True)), serving(watched) as url, Producer(base.redis.url) as producer:
        producer.emit("view", "article:1", 6, actor="u1")
        producer.flush(20, wait="counted")
        page = ready(visit(url))
        expect(page.locator(".alerts li.incomplete")).to_contain_text("many is silent")
        page.get_by_role("button", name="7 days", exact=True).click()
        expect(page.locator(".board ol.incomplete")).to_contain_text("article:1")
        expect(page.locator(".board", has_text="only since")).to_be_visible()
        expect(page.locator(".trends")).to_contain_text("Dashed: buckets before")
        page.get_by_text("As a table").click()
        expect(page.locator(".trends td", has_text="expired")).to_have_count(24 - 4)
        page = ready(visit(f"{url}/#/subject/article%3A1"))
        expect(page.locator(".rules .incomplete")).to_contain_text("as earlier days have expired")


def test_a_late_snapshot_is_shown(visit: Callable[..., Page], fresh_server: Callable[..., EmbeddedServer]) -> None:
    """A snapshot older than two intervals and five minutes is marked, and a recent one is not."""
    server = fresh_server()
    settings = settings_for(server.url)
    with counting(settings, logs.configure(quiet=True)), serving(settings) as url, connect(server.url) as client:
        snapshot = visit(url).locator(".cell.snapshot dd")
        expect(snapshot).to_have_text("none")
        for age, tone in ((100, ""), (3600, "bad")):
            client.hset("tally:meta", mapping={SNAPSHOT_AT: time.time() - age, SNAPSHOT_EVERY: 60})
            expect(snapshot).to_have_attribute("data-tone", tone)
        expect(snapshot).to_have_text("60 min ago")


def test_nothing_counted_yet(visit: Callable[..., Page], fresh_server: Callable[..., object]) -> None:
    """Without a worker the page of an empty system asks to start a worker."""
    server = fresh_server()
    with serving(settings_for(server.url)) as url:
        expect(visit(url).locator("#page")).to_contain_text("start a worker")


def test_the_page_is_light_and_quick(visit: Callable[..., Page], url: str) -> None:
    """All files together are below 300 KB and come from the service alone."""
    page = ready(visit(url))
    expect(page.locator(".trends canvas")).to_be_visible()
    until(lambda: chart_colours(page) >= 5, what="the lines of the chart")
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
        ".map(each => [each.name, each.transferSize])"
    )
    assert sum(size for _, size in sizes) < 300_000
    assert all(name.startswith(url) for name, _ in sizes)


def test_files_are_cached_by_their_checksum(url: str) -> None:
    """An unchanged file is not sent again; each file is compressed and has a strict content security policy."""
    with httpx.Client(base_url=url) as client:
        for path in ("/", "/dashboard/app.js", "/dashboard/style.css", "/dashboard/chart.js", "/dashboard/icon.svg"):
            first = client.get(path)
            assert first.status_code == 200
            assert first.headers["content-encoding"] == "gzip"
            assert "default-src 'none'" in first.headers["content-security-policy"]
            assert "unsafe" not in first.headers["content-security-policy"]
            again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
        plain = client.get("/", headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.text.startswith("<!doctype html>")
        for path in ("/dashboard/nothing.js", "/dashboard/__init__.py", "/dashboard/..%2Fapp.py"):
            assert client.get(path).status_code == 404
