"""One connection: uvicorn's HTTP parser with limits on what comes before a body, and JSON for every refusal.

uvicorn bounds neither a head nor the time that it may take, keeps connections that never say anything, and reads
for ever what is sent after a refusal.  Whoever is silent longest makes room for newcomers, so that any number of
idle connections leaves the server open to others.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from .. import protocol

#: Seconds in which a client may go on sending after it was refused, or stop reading what it asked for.
_LINGER_S = 30


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What a peer may do before there is a request to judge.

    Attributes:
        max_connections: At one time.
        max_head_bytes: Of the request line and the headers, and of whatever frames a body in chunks.
        max_headers: Their number; diffusers' client sends six.
        head_timeout_s: Seconds from the connection, or the first byte of a later request, to the headers' end.
    """

    max_connections: int = 4096
    max_head_bytes: int = 32 * 1024
    max_headers: int = 100
    head_timeout_s: float = 10


class Connections(ServerState):
    """uvicorn's state that all connections share, and which of them are without a request, the oldest first."""

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.idle: dict[Connection, None] = {}

    def make_room(self, newcomer: Connection) -> bool:
        """Closes the connection that has been idle longest if there are too many; False if none is idle."""
        if len(self.connections) <= self.limits.max_connections:
            return True
        oldest = next((connection for connection in self.idle if connection is not newcomer), None)
        if oldest is None:
            return False
        self.idle.pop(oldest)
        self.connections.discard(oldest)  # now, because its own farewell comes a turn of the loop later
        oldest.transport.close()
        return True


class Connection(HttpToolsProtocol):
    """One peer."""

    server_state: Connections

    # ---------------------------------------------------------------------------------- coming and going

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn warns of every request that is none; a stranger could fill the log with that.
        self.logger = logging.getLogger("hybridge.connection")
        self._limits = self.server_state.limits
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_message = self._is_in_head = self._has_progressed = False
        self._framing_bytes = self._head_bytes = self._header_count = 0
        self._refusal: tuple[int, str] | None = None
        self._be_idle()
        if self.server_state.make_room(self):
            self._arm(self._limits.head_timeout_s)
        else:
            self._refuse(503, f"{self._limits.max_connections} connections are busy already. Try: again later")

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.server_state.idle.pop(self, None)
        super().connection_lost(exc)

    def _be_idle(self) -> None:
        self.server_state.idle.pop(self, None)
        self.server_state.idle[self] = None

    # ------------------------------------------------------------------------------------------- parsing

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._has_progressed = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        # The parser keeps an unfinished header, and skips a chunk's extensions, without telling anybody.
        if self._is_in_message and not self._has_progressed:
            self._framing_bytes += len(data)
            if self._framing_bytes > self._limits.max_head_bytes:
                self._refuse(431, self._too_large())
        if not self._has_request() and not self.transport.is_closing():
            self._arm(self._limits.head_timeout_s)

    def on_message_begin(self) -> None:
        # A head that begins behind another request's body shares its first piece with that body.
        self._has_progressed = self._is_in_message
        self._is_in_message = self._is_in_head = True
        self._framing_bytes = self._head_bytes = self._header_count = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def _count(self, more_bytes: int) -> None:
        self._head_bytes += more_bytes
        if self._head_bytes > self._limits.max_head_bytes or self._header_count > self._limits.max_headers:
            self._refusal = 431, self._too_large()
            raise ValueError("head too large")  # the parser's way out, which ends in send_400_response

    def _too_large(self) -> str:
        return (
            f"the address and headers are too large: expected at most {self._limits.max_head_bytes} bytes and"
            f" {self._limits.max_headers} headers. Try: tensors and pictures belong in the body"
        )

    def on_headers_complete(self) -> None:
        self._is_in_head, self._has_progressed = False, True
        self._disarm()
        self.server_state.idle.pop(self, None)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message, self._has_progressed = False, True
        super().on_message_complete()
        if not self._has_request():  # answered before the body had ended
            self._disarm()
            self._be_idle()

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # ------------------------------------------------------------------------------------------ answering

    def on_response_complete(self) -> None:
        super().on_response_complete()
        waiting = self.transport.get_write_buffer_size()
        if waiting:
            self.loop.call_later(_LINGER_S, self._check_reader, waiting)
        if self.transport.is_closing() or self._has_request():
            return
        if self._is_in_message:
            self._arm(_LINGER_S)
        else:
            self._be_idle()

    def _check_reader(self, before: int) -> None:
        """Gives up on a client that has not read a byte of its answer since it was looked at last."""
        waiting = self.transport.get_write_buffer_size()
        if waiting and waiting == before:
            self.transport.abort()
        elif waiting:
            self.loop.call_later(_LINGER_S, self._check_reader, waiting)

    def send_400_response(self, msg: str) -> None:
        status, message = self._refusal or (400, msg)
        self._refuse(status, message)

    def _refuse(self, status: int, message: str) -> None:
        """Answers and hangs up, unless an answer is on its way already."""
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            response = protocol.write_status(status, message)
            headers = {**response.headers, "content-length": len(response.body), "connection": "close"}
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + response.body)
        self.transport.close()

    # --------------------------------------------------------------------------------------------- waiting

    def _arm(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._out_of_time)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _out_of_time(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._refuse(408, f"the headers did not end within {self._limits.head_timeout_s:g} s")
        else:
            self.transport.close()
