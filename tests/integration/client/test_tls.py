"""TLS to the server: producers, workers and the read service verify its certificate and its host name."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import ConnectionError as RedisConnectionError

from tallystream.client.connect import connect
from tallystream.producing.producer import Producer
from tallystream_worker.process import logs
from tallystream_worker.runtime.app import counting
from tallystream_worker.service.server import serving
from tests.http_service import settings_for
from tests.secured import binary_of, free_port, started

if TYPE_CHECKING:
    from collections.abc import Iterator


def authority(folder: Path, name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """Make a certificate authority, write its files `<name>.crt` and `<name>.key`, and return key and certificate."""
    return _signed(folder, name, None, [])


def _signed(
    folder: Path,
    name: str,
    issuer: tuple[ec.EllipticCurvePrivateKey, x509.Certificate] | None,
    names: list[x509.GeneralName],
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, issued_by = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issued_by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return key, certificate


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two authorities, and certificates of a server, of a server with another name, and of a client."""
    folder = tmp_path_factory.mktemp("tls")
    ours = authority(folder, "ca")
    authority(folder, "other")
    _signed(folder, "server", ours, [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    _signed(folder, "misnamed", ours, [x509.DNSName("redis.example")])
    _signed(folder, "client", ours, [])
    return folder


def url_of(port: int, certificates: Path, ca: str = "ca", *, client: bool = True) -> str:
    """Return the TLS URL of a server, with the authority to trust and, if `client`, the client's certificate."""
    own = f"&ssl_certfile={certificates}/client.crt&ssl_keyfile={certificates}/client.key" if client else ""
    return f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificates}/{ca}.crt{own}"


@pytest.fixture(scope="module")
def port(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that accepts only TLS, and only with a client certificate."""
    port = free_port()
    with started(
        binary_of("redis"), tmp_path_factory.mktemp("server"), url_of(port, certificates), *_tls(port, certificates)
    ):
        yield port


def _tls(port: int, certificates: Path, name: str = "server") -> list[str]:
    return [
        *("--port", "0", "--tls-port", str(port), "--tls-auth-clients", "yes"),
        *("--tls-cert-file", f"{certificates}/{name}.crt", "--tls-key-file", f"{certificates}/{name}.key"),
        *("--tls-ca-cert-file", f"{certificates}/ca.crt"),
    ]


def test_everything_works_by_tls(port: int, certificates: Path) -> None:
    """A producer, a worker and the read service count an event over TLS, each with a client certificate."""
    url = url_of(port, certificates)
    with counting(settings_for(url), logs.configure(quiet=True)), serving(settings_for(url)) as service:
        with Producer(url) as producer:
            producer.emit("view", "a", 3)
            producer.flush(10, wait="counted")
        assert httpx.get(f"{service}/v1/counters/a/view").json()["value"] == 3
        assert httpx.get(f"{service}/readyz").status_code == 200


def test_a_certificate_of_someone_else_is_refused(port: int, certificates: Path) -> None:
    """A client refuses a server whose certificate was signed by an authority that it does not trust."""
    for ca in ("other", None):
        url = url_of(port, certificates, ca) if ca else f"rediss://127.0.0.1:{port}"
        with closing(connect(url)) as client, pytest.raises(RedisConnectionError, match="certificate verify failed"):
            client.ping()


def test_a_name_that_is_not_in_the_certificate_is_refused(certificates: Path, tmp_path: Path) -> None:
    """A client refuses a server whose certificate is from a trusted authority but for another host."""
    port = free_port()
    url = url_of(port, certificates)
    with (
        started(binary_of("redis"), tmp_path, url + "&ssl_check_hostname=false", *_tls(port, certificates, "misnamed")),
        closing(connect(url)) as client,
        pytest.raises(RedisConnectionError, match="IP address mismatch"),
    ):
        client.ping()


def test_a_server_that_asks_for_a_certificate_gets_one(port: int, certificates: Path) -> None:
    """A server that requires a client certificate refuses a client without one."""
    with closing(connect(url_of(port, certificates, client=False))) as client, pytest.raises(RedisConnectionError):
        client.ping()


def test_the_command_line_says_what_to_do(port: int, certificates: Path) -> None:
    """The command line reports an untrusted certificate with the URL parameter to set, and hides the password."""
    url = url_of(port, certificates, "other").replace("//", "//user:hidden@", 1)
    for command in (["status"], ["emit", "view", "a", "--wait"], ["worker"]):
        ran = subprocess.run(
            [str(Path(sys.executable).parent / "tallystream"), *command, "--redis", url],
            env=os.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ran.returncode != 0
        assert "ssl_ca_certs=" in ran.stderr, command
        assert "does not trust" in ran.stderr or "not trusted" in ran.stderr
        assert "hidden" not in ran.stderr
        assert "Traceback" not in ran.stderr
