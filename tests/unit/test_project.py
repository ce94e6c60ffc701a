"""The files at the project's door name what exists: workflows, templates, checks of the prose."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import yaml

from tests.paths import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
PROSE = [sys.executable, str(ROOT / ".ci" / "prose")]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(workflow):
    """Every verb of make and every script that a workflow runs exists, and every action has a version."""
    verbs = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert steps
    for step in steps:
        command = step.get("run", "")
        assert set(re.findall(r"\bmake ([a-z]+)", command)) <= verbs
        for script in re.findall(r"(?<!\S)\.ci/[a-z-]+", command):
            assert os.access(ROOT / script, os.X_OK), script
        if "uses" in step:
            assert re.search(r"@(v\d+|release/v\d+)$", step["uses"]), step["uses"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_least_rights_and_a_time_limit(workflow):
    """A workflow's token can read at most, unless a job names more, and a job that runs code ends after a time."""
    found = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    rights = found["permissions"]
    assert all(right == "read" or name == "issues" for name, right in rights.items())
    for name, job in found["jobs"].items():
        assert "timeout-minutes" in job or "needs" in job, name


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_template_is_valid(template):
    """Every template of an issue has a name and a body, or is the configuration of the others."""
    found = yaml.safe_load(template.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= found.keys() or "contact_links" in found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""What is read is whatever nobody has counted."""\n'),  # prose: ignore
        ("b.py", "x = 1  # goes on for ever\n"),  # prose: ignore
        ("c.py", 'raise ValueError("the entry is parked behind the others")\n'),  # prose: ignore
        ("d.lua", "return 1 -- made anew\n"),  # prose: ignore
        ("e.md", "A paragraph that\nsays so.\n"),  # prose: ignore
        ("f.toml", "a = 1  # besides that\n"),  # prose: ignore
    ],
)
def test_the_check_of_the_prose_finds_a_phrase(tmp_path, name, text):
    """A phrase of the list fails the check in docstrings, comments, messages and pages, with its place."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run([*PROSE, name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(f"{name}:1: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""Return the value."""\nBEHIND = {"says": "anew"}  # prose: ignore anew\n'),
        ("b.md", "Text.\n\n    code says so\n\n```\nnobody\n```\n\nAnd `besides` in code.\n"),  # prose: ignore
    ],
)
def test_the_check_of_the_prose_leaves_code_alone(tmp_path, name, text):
    """Code, quoted code and lines that are marked pass the check."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    done = subprocess.run([*PROSE, name], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
