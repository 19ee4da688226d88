"""Connections during their TLS handshake.

asyncio's server hides a connection until its handshake is done, for which it waits a minute.  Here connections are
accepted by our own code: each counts as idle from its first moment, and its handshake has as much time as a head.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

from .connection import Connection
from .connection_limits import Connections

log = logging.getLogger("hybridge.connection")

#: Seconds until the next attempt when the process may open no more files.
_NO_FILES_S = 0.5


class TlsHandshake:
    """One client until its handshake is done.

    Args:
        peer: Its socket, which the connection closes.
        context: The TLS context with the certificate.
        state: The connections among which it counts.
        make_connection: Makes the connection that follows.
    """

    def __init__(
        self,
        peer: socket.socket,
        context: ssl.SSLContext,
        state: Connections,
        make_connection: Callable[[], Connection],
    ) -> None:
        self._peer = peer
        self._context = context
        self._state = state
        self._make_connection = make_connection
        self._task = asyncio.get_running_loop().create_task(self._shake())
        state.connections.add(self)  # type: ignore[arg-type]
        state.be_idle(self)
        if not state.make_room(self):
            self.abort()  # it could not read a refusal

    async def _shake(self) -> None:
        loop, timeout_s = asyncio.get_running_loop(), self._state.limits.head_timeout_s
        try:
            with suppress(OSError):  # of TLS, too, and for a handshake that takes too long
                await loop.connect_accepted_socket(
                    self._connection, self._peer, ssl=self._context, ssl_handshake_timeout=timeout_s
                )
        finally:
            self._leave()

    def _connection(self) -> Connection:
        connection = self._make_connection()
        connection.follows(self._leave)
        return connection

    def _leave(self) -> None:
        self._state.connections.discard(self)
        self._state.forget(self)

    @property
    def unread_bytes(self) -> int:
        """0: there are no answers yet."""
        return 0

    def abort(self) -> None:
        """Close the connection."""
        self._leave()
        self._task.cancel()
        self._task.add_done_callback(lambda _: self._peer.close())

    def shutdown(self) -> None:
        """Close the connection, because the server shuts down."""
        self.abort()


async def accept(listener: socket.socket, take: Callable[[socket.socket], object]) -> None:
    """Accept connections without end; ``listener`` must listen and be non-blocking."""
    loop = asyncio.get_running_loop()
    while True:
        with suppress(OSError):
            while True:
                take((await loop.sock_accept(listener))[0])
        log.warning("a connection could not be taken; are there too few files for --max-connections?")
        await asyncio.sleep(_NO_FILES_S)
