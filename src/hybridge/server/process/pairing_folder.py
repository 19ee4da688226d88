"""The folder of a server that pairs: its certificate, made once, its keys, and where it runs now."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ...errors import HybridgeError

#: How long the certificate is valid.  Paired clients compare it as a whole and do not look at its dates.
_VALID = timedelta(days=3650)

#: How long before now it begins to be valid, for other clients whose clock is late.
_BEFORE = timedelta(days=1)

#: Most bytes of a note about a running server.
_MOST_NOTE_BYTES = 1 << 16


def default_folder() -> Path:
    """Return ``$XDG_DATA_HOME/hybridge``, or ``~/.local/share/hybridge`` without the variable.

    Raises:
        HybridgeError: when there is no home.
    """
    configured = os.environ.get("XDG_DATA_HOME", "")
    if Path(configured).is_absolute():  # the specification of XDG: a relative path is ignored
        return Path(configured) / "hybridge"
    try:
        return Path.home() / ".local" / "share" / "hybridge"
    except RuntimeError:
        raise HybridgeError("this user has no home for the pairing folder", hint="--pairing-dir FOLDER") from None


@dataclass(frozen=True, slots=True)
class RunningServer:
    """Where a server that pairs runs now.

    Attributes:
        port: Its port.
        hosts: Addresses under which other machines reach it, the likeliest first; empty on loopback alone.
        keys: Its file of keys.
        certificate: The file of its certificate.
    """

    port: int
    hosts: tuple[str, ...]
    keys: str
    certificate: str


@dataclass(frozen=True, slots=True)
class PairingFolder:
    """The folder, which only its owner can enter."""

    path: Path

    @property
    def certificate(self) -> Path:
        """The certificate in PEM."""
        return self.path / "certificate.pem"

    @property
    def private_key(self) -> Path:
        """The certificate's key in PEM."""
        return self.path / "certificate-key.pem"

    @property
    def keys(self) -> Path:
        """The file of API keys."""
        return self.path / "keys"

    def prepare(self, *, has_certificate: bool = False) -> None:
        """Make what is missing: the folder, an empty file of keys, the certificate if there is no other one.

        Raises:
            HybridgeError: when a file cannot be written, half of a certificate is there, or its maker is not
                installed.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self.keys.exists():
                os.close(os.open(self.keys, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            if has_certificate:
                return
            there = [self.certificate.exists(), self.private_key.exists()]
            if all(there):
                return
            if any(there):
                raise HybridgeError(
                    f"{self.path} has half of a certificate",
                    expected=f"{self.certificate.name} and {self.private_key.name}, or neither",
                )
            certificate, key = _self_signed()
            # The key first: with a certificate alone, the next start would stop.
            _write(self.private_key, key)
            _write(self.certificate, certificate)
        except OSError as error:
            raise HybridgeError(
                "the pairing folder cannot be written",
                saw=f"{self.path}: {error.strerror}",
                hint="--pairing-dir FOLDER",
            ) from None

    @contextlib.contextmanager
    def noted(self, server: RunningServer) -> Iterator[None]:
        """Write down where a server runs, for ``hybridge pair``, until the block ends."""
        note = self.path / f"running-{server.port}.json"
        try:
            _write(note, json.dumps(asdict(server)).encode())
        except OSError as error:
            raise HybridgeError("the pairing folder cannot be written", saw=f"{note}: {error.strerror}") from None
        try:
            yield
        finally:
            note.unlink(missing_ok=True)

    def running(self) -> list[RunningServer]:
        """Return the servers that are written down; one that was killed may be among them."""
        found = []
        for note in sorted(self.path.glob("running-*.json")):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                if note.stat().st_size <= _MOST_NOTE_BYTES:
                    told = json.loads(note.read_bytes())
                    hosts = tuple(str(host) for host in told["hosts"])
                    found.append(
                        RunningServer(int(told["port"]), hosts, str(told["keys"]), str(told["certificate"]))
                    )
        return found


def likeliest_first(hosts: Sequence[str]) -> tuple[str, ...]:
    """Return addresses of this machine, with the one first that its packets to other networks come from."""
    # Connecting a UDP socket sends nothing: it only asks the table of routes.  192.0.2.1 is for documentation.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        own = probe.getsockname()[0]
        return tuple(sorted(hosts, key=lambda host: host != own))
    return tuple(hosts)


def _write(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # which opens it as 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _self_signed() -> tuple[bytes, bytes]:
    """Return a self-signed certificate with a P-256 key, and the key, both in PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
    except ModuleNotFoundError:
        raise HybridgeError(
            "making a certificate needs the package cryptography",
            hint="pip install 'hybridge[server,pairing]', or a certificate of your own as --tls-cert and --tls-key",
        ) from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hybridge")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    in_pem = serialization.Encoding.PEM
    private = key.private_bytes(in_pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(in_pem), private
