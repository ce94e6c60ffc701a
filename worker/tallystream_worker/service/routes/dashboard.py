"""The routes of the dashboard's files: compressed once, with a checksum, and with a strict content security policy."""

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from litestar import Request, Response, get
from litestar.params import FromPath

from tallystream_worker.service.problems import problem
from tallystream_worker.service.tokens import Role

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# Chart.js with its time axis, as a file of the package chartkick; no code of that package runs.
_CHARTS: Final = "django/static/chartkick/Chart.bundle.js"

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class _File:
    text: bytes
    compressed: bytes
    etag: str
    media_type: str


@get("/", include_in_schema=False, opt={"role": Role.OPEN})
async def page(request: Request[Any, Any, Any]) -> Response[bytes]:
    """Return the page of the dashboard; respond 304 if the request names the present version. It needs no token."""
    return await _answer(request, "index.html")


@get("/dashboard/{name:str}", include_in_schema=False, opt={"role": Role.OPEN})
async def part(request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
    """Return a file of the dashboard, such as a style sheet, a script or the icon; respond 404 if there is none.

    Respond 304 if the request names the present version. `chart.js` is a file of the package chartkick: respond 404 if
    that is not installed. No token is needed.
    """
    return await _answer(request, name)


async def _answer(request: Request[Any, Any, Any], name: str) -> Response[bytes]:
    if name not in _names():
        raise problem(HTTPStatus.NOT_FOUND, "the dashboard has no such file")
    file = await asyncio.to_thread(_file, name)
    headers = {
        "ETag": file.etag,
        "Cache-Control": "no-cache",
        "Vary": "Accept-Encoding",
        "Content-Security-Policy": _POLICY,
    }
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(b"", status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, media_type=file.media_type, headers=headers | {"Content-Encoding": "gzip"})
    return Response(file.text, media_type=file.media_type, headers=headers)


@cache
def _names() -> frozenset[str]:
    ours = (entry.name for entry in files("tallystream_worker.dashboard").iterdir())
    return frozenset({name for name in ours if Path(name).suffix in _TYPES} | {"chart.js"})


@cache
def _file(name: str) -> _File:
    text = _charts() if name == "chart.js" else files("tallystream_worker.dashboard").joinpath(name).read_bytes()
    # A weak ETag, because the compressed and the plain response share it.
    etag = f'W/"{hashlib.sha256(text).hexdigest()[:20]}"'
    return _File(text, gzip.compress(text, 9, mtime=0), etag, _TYPES[Path(name).suffix])


def _charts() -> bytes:
    spec = find_spec("chartkick")
    if spec is None or spec.origin is None:
        raise problem(HTTPStatus.NOT_FOUND, "the package chartkick, which contains Chart.js, is not installed")
    return Path(spec.origin).parent.joinpath(_CHARTS).read_bytes()
