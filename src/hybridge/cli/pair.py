"""``hybridge pair``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..server.process.pairing_folder import PairingFolder, RunningServer


def pair(
    host: str = typer.Option(
        None, help="Address under which the other machine reaches this one.", show_default="the likeliest one"
    ),
    port: int = typer.Option(None, help="Of the server, if several run here.", min=1, max=65535),
    pairing_dir: Path = typer.Option(
        None, help="As for `hybridge serve`.", envvar="HYBRIDGE_PAIRING_DIR", show_default="~/.local/share/hybridge"
    ),
) -> None:
    """Invite another machine to the server that runs on this one: print a link for `hybridge join`.

    The link is good once, for ten minutes.
    """
    import socket

    from ..protocol.pairing_link import PairingLink, plain_name
    from ..server.middleware.invitations import LIFETIME_S, invite
    from ..server.process.pairing_folder import PairingFolder, default_folder
    from .console import screen

    server, fingerprint = _chosen(PairingFolder(pairing_dir or default_folder()), port)
    reachable = host or (server.hosts[0] if server.hosts else "127.0.0.1")
    token = invite(Path(server.keys))
    link = PairingLink(reachable, server.port, fingerprint, token, plain_name(socket.gethostname()))
    # The link read again: an address that cannot be in one is refused here, not on the other machine.
    text = str(PairingLink.parse(str(link)))
    console = screen()
    _draw(text)
    console.print("On the other machine:", highlight=False)
    # On one line, however narrow the terminal, and quoted: "#" and "," mean something to some shells.
    typer.echo(f'hybridge join "{text}"')
    notes = [f"The link is good once, for {LIFETIME_S // 60} minutes."]
    if not server.hosts:
        notes.append("This server listens on this machine alone; with --public, other machines reach it.")
    elif len(server.hosts) > 1 and host is None:
        notes.append(f"Other addresses of this machine, for --host: {', '.join(server.hosts[1:])}.")
    notes.append(f"Whoever joins gets a key in {server.keys}; `hybridge keys remove` revokes it.")
    for note in notes:
        console.print(note, highlight=False, markup=False)


def _chosen(folder: PairingFolder, port: int | None) -> tuple[RunningServer, bytes]:
    """Return the server that is meant, and the SHA-256 of its certificate, which it shows now."""
    from ..errors import HybridgeError

    noted = [server for server in folder.running() if port in (None, server.port)]
    if not noted:
        which = f" on port {port}" if port else ""
        raise HybridgeError(
            f"no server that pairs runs here{which}",
            saw=f"no note of one in {folder.path}",
            hint="hybridge serve MODEL --public --pairing, as the same user",
        )
    answering: list[tuple[RunningServer, bytes]] = []
    failures: list[HybridgeError] = []
    for server in noted:  # one that was killed has left its note
        try:
            answering.append((server, _fingerprint_of(server)))
        except HybridgeError as error:
            failures.append(error)
    if not answering:
        raise failures[0]
    if len(answering) > 1:
        ports = ", ".join(str(server.port) for server, _ in answering)
        raise HybridgeError(
            "several servers run here", saw=f"the ports {ports}", expected="--port with one of them"
        )
    return answering[0]


def _fingerprint_of(server: RunningServer) -> bytes:
    """Return the SHA-256 of the server's certificate, after a look at whether the server shows it."""
    import hashlib
    import ssl

    from ..errors import HybridgeError
    from ..server.process.announcement import first_certificate

    host = server.hosts[0] if server.hosts else "127.0.0.1"
    try:
        stored = first_certificate(Path(server.certificate).read_text())
        shown = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, server.port), timeout=5))
    except (OSError, ValueError) as error:
        raise HybridgeError(
            f"the server on port {server.port} does not answer",
            saw=str(error),
            hint="hybridge serve MODEL --public --pairing",
        ) from None
    if shown != stored:
        raise HybridgeError(
            f"the server on port {server.port} shows another certificate than {server.certificate} has",
            hint="starting it again, if the file was replaced",
        )
    return hashlib.sha256(stored).digest()


def _draw(text: str) -> None:
    """Draw a QR code of the text in a terminal, if segno is installed."""
    import sys

    try:
        import segno
    except ModuleNotFoundError:
        return
    if sys.stdout.isatty():
        segno.make(text, error="l").terminal(compact=True)
