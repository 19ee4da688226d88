"""Servers with TLS, and self-signed certificates for them."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hostile import Behaviour, Hostile, read_request


class SelfSigned:
    """A self-signed P-256 certificate for 127.0.0.1 and its key, in a folder."""

    def __init__(self, folder: Path) -> None:
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        )
        command += " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
        self.certificate = folder / "cert.pem"
        self.key = folder / "key.pem"

    @classmethod
    def of(cls, certificate: Path, key: Path) -> SelfSigned:
        """One that is there already."""
        made = cls.__new__(cls)
        made.certificate, made.key = certificate, key
        return made

    @property
    def pem(self) -> str:
        return self.certificate.read_text()

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


@contextmanager
def secure_server(own: SelfSigned, talk: Behaviour) -> Iterator[Hostile]:
    """A server with a certificate; ``requests`` are the requests that arrived after a handshake."""
    context = own.context()
    requests: list[bytes] = []

    def in_secret(connection: socket.socket, stop: threading.Event) -> None:
        try:
            wrapped = context.wrap_socket(connection, server_side=True)
        except OSError:  # the client does not want this certificate
            return
        with wrapped:
            requests.append(read_request(wrapped))
            talk(wrapped, stop)

    with Hostile(in_secret, reads=False) as server:
        server.requests = requests
        server.url = server.url.replace("http:", "https:")
        yield server
