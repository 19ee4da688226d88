"""One connection: uvicorn's HTTP parser with limits on what comes before a body, and every error in JSON.

uvicorn limits neither the size of a head nor the time until it is complete, keeps connections that never send
anything, reads without end what is sent after an error response, and waits without end until an answer is read.

httptools ends a message after the head when the head asks for an upgrade, whatever its Content-Length is, and would
read the body as the next request.  Here the upgrade is ignored: the head is parsed again without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from ... import protocol
from ..scheduling.limits import SLOWEST_BYTES_PER_S
from .connection_limits import Connections, is_probe
from .request_framing import find_fault, head_without_upgrade


class Connection(HttpToolsProtocol):
    """The connection of one client."""

    server_state: Connections

    # ---------------------------------------------------------------------------------- coming and going

    _leave_handshake: Callable[[], None] | None = None

    def follows(self, leave_handshake: Callable[[], None]) -> None:
        """Call this as soon as the connection counts itself, so that it is not counted twice."""
        self._leave_handshake = leave_handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if self._leave_handshake is not None:
            self._leave_handshake()
        super().connection_made(transport)
        # uvicorn warns about every invalid request; a client could fill the log with that.
        self.logger = logging.getLogger("hybridge.connection")
        self._limits = self.server_state.limits
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_message = self._is_in_head = self._has_progressed = False
        self._framing_bytes = self._head_bytes = self._header_count = 0
        self._refusal: tuple[int, str] | None = None
        self._last_words: tuple[int, str] | None = None
        self._answering: RequestResponseCycle | None = None
        self._reading: asyncio.TimerHandle | None = None
        self.server_state.be_idle(self)
        if self.server_state.make_room(self):
            self._arm(self._limits.head_timeout_s)
        else:
            self._refuse(503, self._too_many())
        self._is_beyond_limit = self.server_state.is_over_limit

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._stop_watching()
        self.server_state.forget(self)
        # uvicorn notifies only the request that was read last, so those before it would never end.
        for cycle in (self._answering, *(queued for queued, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    @property
    def unread_bytes(self) -> int:
        """Bytes of its answers that the client has not read yet."""
        return self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close the connection at once, whatever is left to be sent."""
        self.transport.abort()

    def _too_many(self) -> str:
        return f"{self._limits.max_connections} connections are busy already. Try: again later"

    # ------------------------------------------------------------------------------------------- parsing

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._is_past_the_last():
            return
        self._has_progressed = False
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("this is no HTTP request. Expected: HTTP/1.1 with CRLF at the end of each line")
        if self.transport.is_closing() or self._last_words is not None:
            return
        # The parser keeps an unfinished header, and skips a chunk's extensions, without any callback.
        if self._is_in_message and not self._has_progressed:
            self._framing_bytes += len(data)
            if self._framing_bytes > self._limits.max_head_bytes:
                self._refuse(431, self._too_large())
        if not self._has_request() and not self.transport.is_closing():
            self._arm(self._limits.head_timeout_s)

    def _is_past_the_last(self) -> bool:
        """Whether what comes now follows an invalid request or one with ``close``, and so gets no answer."""
        if self._last_words is not None:
            return True
        return self._has_request() and not self.cycle.keep_alive and not self._is_in_message

    def _parse(self, data: bytes) -> None:
        left = memoryview(data)
        while True:
            try:
                self.parser.feed_data(left)
                return
            except httptools.HttpParserUpgrade as upgrade:
                left = left[upgrade.args[0] :]
            # A parser that has seen an upgrade no longer knows of a body.
            head = head_without_upgrade(
                self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers
            )
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self.parser.feed_data(head)

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
        # Those behind a body in chunks may not pass for those in front of it, which a proxy may have vouched for.
        if self._is_in_head:
            # Of the white space around a value (RFC 9112, section 5) the parser leaves what is behind it.
            super().on_header(name, value.rstrip(b" \t"))

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
        version = self.parser.get_http_version()
        self._refusal = find_fault(self.parser.get_method(), version, self.headers)
        if self._refusal is not None:
            raise ValueError("no such framing")
        if self.parser.should_upgrade():
            return  # it is parsed once more
        if version == "1.0":
            self.expect_100_continue = False  # which HTTP/1.0 does not know
        self._is_beyond_limit = self._is_beyond_limit and self.server_state.is_over_limit
        if self._is_beyond_limit and not is_probe(self.url):
            self._refusal = 503, self._too_many()
            raise ValueError("too many connections")
        super().on_headers_complete()
        if not self.unread_bytes:
            self._stop_watching()
        self._is_in_head, self._has_progressed = False, True
        self._disarm()
        self.server_state.idle.pop(self, None)
        if self._answering is None or self._answering.response_complete:
            self._answering = self.cycle
        # A client that gets an answer instead of 100 may send the body or not.
        if self.expect_100_continue or self._is_beyond_limit:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._is_in_message, self._has_progressed = False, True
        super().on_message_complete()
        if not self._has_request():  # answered before the body had ended
            self._disarm()
            self.server_state.be_idle(self)

    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # ------------------------------------------------------------------------------------------ answering

    def on_response_complete(self) -> None:
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None:
            self._answering = following
        if self._last_words is not None and not self.transport.is_closing() and not self._has_request():
            self._refuse(*self._last_words)
        if not self.transport.is_closing() and self._has_request():
            return
        if self._is_in_message and not self.transport.is_closing():
            self._arm(self._limits.body_pause_s)
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        # What is left of a complete answer is still watched.
        if self._has_request():
            self._stop_watching()

    def _watch_reader(self) -> None:
        """Close the connection if the client stops reading its answer from now on."""
        self._stop_watching()
        if self.unread_bytes:
            self._check_later()
            self.server_state.be_unread(self)
        elif self.transport.is_closing() or not self._has_request():
            self.server_state.be_idle(self)

    def _stop_watching(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self.server_state.unread.pop(self, None)

    def _check_later(self) -> None:
        pause_s = self._limits.body_pause_s
        left = self.unread_bytes - int(pause_s * SLOWEST_BYTES_PER_S)
        self._reading = self.loop.call_later(pause_s, self._check_reader, max(0, left))

    def _check_reader(self, expected: int) -> None:
        """Close the connection of a client that has left more than ``expected`` bytes of its answer unread."""
        self._reading = None
        waiting = self.unread_bytes
        if waiting > expected:
            self.abort()
        elif waiting:
            self._check_later()
        else:
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        status, message = self._refusal or (400, msg)
        self._refuse(status, message)

    def _refuse(self, status: int, message: str) -> None:
        """Answer and close, after the answers to earlier requests; only close if an answer has been started."""
        first = self._answering
        if first is not None and self._has_request() and (self._is_in_head or self.cycle is not first):
            self._last_words = status, message
            if not self._is_in_head:  # the invalid request waits behind others
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else first
            self._is_in_message = self._is_in_head = False
            return
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            response = protocol.write_status(status, message)
            headers = {**response.headers, "content-length": len(response.body), "connection": "close"}
            lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            self.transport.write("\r\n".join([*lines, "", ""]).encode("ascii") + response.body)
        self.transport.close()
        self._watch_reader()

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
