"""Tests that generated pages are current, and that links between pages are valid."""

from __future__ import annotations

import re
from dataclasses import fields

import msgspec

from docs._generate import command_line, configuration
from tallystream.rules.metrics import Metric
from tallystream_worker.settings.load import SECTIONS
from tests.paths import ROOT


def test_the_page_of_the_configuration_is_current():
    """`docs/configuration.md` is the present output of its generator."""
    made = configuration.page(configuration.SOURCE.read_text(encoding="utf-8"))
    assert configuration.PAGE.read_text(encoding="utf-8") == made, "run: python -m docs._generate.configuration"


def test_the_page_of_the_command_line_is_current():
    """`docs/command-line.md` is what its generator makes of the commands of today."""
    assert command_line.PAGE.read_text(encoding="utf-8") == command_line.page(), (
        "run: python -m docs._generate.command_line"
    )


def test_every_setting_and_rule_is_explained():
    """Every setting and every rule of a metric is explained on the page."""
    page = configuration.PAGE.read_text(encoding="utf-8")
    for section, kind in SECTIONS.items():
        for setting in fields(kind):
            (row,) = re.findall(rf"\| `TALLYSTREAM_{section}_{setting.name}` \|".upper(), page)
            assert row
    for rule in msgspec.structs.fields(Metric):
        assert re.search(rf"`[^`]*\b{rule.name}\b[^`]*`", page), rule.name


def test_links_between_pages_lead_somewhere():
    """Every relative link in the documentation and the README leads to an existing file."""
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"
