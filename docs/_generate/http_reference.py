"""Write `docs/http-reference.md` from the OpenAPI description of the read service.

python -m docs._generate.http_reference
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tallystream_worker.service.app import create_app
from tallystream_worker.settings.settings import Settings

PAGE = Path(__file__).parents[1] / "http-reference.md"

_HEAD = """# HTTP reference

This page lists every route of the read service. `python -m docs._generate.http_reference` writes it from
`/schema/openapi.json` (OpenAPI 3.1). [HTTP](http.md) explains how to use the routes, and the fields `as_of`,
`positions`, `lag`, `error`, `start`, `end`, `complete` and `missing` of the answers.
"""


def page() -> str:
    """Return the text of the page, with a section for each route and method."""
    description = json.loads(json.dumps(create_app(Settings()).openapi_schema.to_schema(), default=str))
    parts = [_HEAD]
    for path, item in sorted(description["paths"].items(), key=_order):
        parts += [_route(method, path, item[method]) for method in ("get", "post", "delete") if method in item]
    return "\n".join(parts)


def _order(entry: tuple[str, Any]) -> tuple[bool, str]:
    return not entry[0].startswith("/v1"), entry[0]


def _route(method: str, path: str, operation: dict[str, Any]) -> str:
    lines = [
        f"## `{method.upper()} {path}`",
        "",
        f"**{operation['summary']}.** {operation.get('description', '')}".strip(),
    ]
    if parameters := operation.get("parameters"):
        lines += ["", "| parameter | in | meaning |", "| --- | --- | --- |"]
        for each in parameters:
            about = each.get("description") or f"the {each['name']}"
            lines.append(
                f"| `{each['name']}` | {each['in']} | {about}{'' if each.get('required') else _default(each)} |"
            )
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        lines += ["", f"Body, `{kind}`:", "", *_example(media["example"])]
    for status, answer in operation["responses"].items():
        examples = [media["example"] for media in answer.get("content", {}).values() if "example" in media]
        if status.startswith("2") and examples:
            lines += ["", f"Answer, {status}:", "", *_example(examples[0])]
        elif not status.startswith("2") and status != "400":
            lines += ["", f"{status}: {answer['description']}"]
    return "\n".join(lines) + "\n"


def _default(parameter: dict[str, Any]) -> str:
    value = parameter["schema"].get("default")
    return "" if value is None else f" (default {json.dumps(value)})"


def _example(example: Any) -> list[str]:
    text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
    return ["```json" if not isinstance(example, str) else "```text", text, "```"]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
