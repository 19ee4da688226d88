"""``hybridge serve``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from socket import socket

    from ..server.process.server import ListenOptions
    from ..server.process.traces import Traces
    from ..server.settings import Settings


def serve(context: typer.Context) -> None:
    """Serve models over HTTP.

    Every option can also be set as a variable, such as HYBRIDGE_PORT.
    """
    given = {name: value for name, value in context.params.items() if value not in (None, (), [])}

    from pydantic import ValidationError

    from ..errors import HybridgeError
    from ..server.settings import Settings, refuse_unknown_variables

    refuse_unknown_variables()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        named = ".".join(map(str, first["loc"]))
        why = first["msg"].removeprefix("Value error, ")
        if not named:
            raise HybridgeError("these settings do not go together", saw=why) from None
        saw = str(first.get("input"))
        saw = saw if len(saw) <= 80 else f"{saw[:79]}…"
        raise HybridgeError(f"setting {named} is wrong", saw=saw, expected=why) from None

    from ..server.process.logs import configure_logging
    from ..server.process.startup_checks import check_opening

    configure_logging(settings.log_format, settings.log_level)
    keys = check_opening(settings)

    from ..engine import keep_pieces, limit_threads
    from ..scaleout.backend import ReplicaBackend
    from ..server.app import create_app
    from ..server.middleware.draining import Drain
    from ..server.process.listening_sockets import addresses_elsewhere, opened, refusal
    from ..server.process.server import BACKLOG, address_of, run
    from .console import screen
    from .serve_models import backend_of

    console = screen()
    with (
        opened(settings.address, settings.port) as listeners,
        _noted(settings, listeners),
        _announced(settings, listeners),
    ):
        keep_pieces()  # before there are threads
        limit_threads()
        traces = _traces(settings.otlp_endpoint)
        backend = backend_of(settings, console)
        for info in backend.info():
            if settings.preload and not isinstance(backend, ReplicaBackend):  # replicas do it themselves
                with console.status(f"loading {info.part}"):
                    backend.preload(info.part)
            dtype = f"{info.dtype} " if info.dtype else ""
            device = ", ".join(info.replicas) if settings.ray is None and info.replicas else info.device
            chosen = f"{dtype}on {device} ({info.device_reason}; {info.dtype_reason})"
            console.print(f"[bold]{info.part}[/] {chosen}")
        scheme = "https" if settings.certificate else "http"
        try:
            for listener in listeners:
                listener.listen(BACKLOG)  # so that a program that reads the next line can connect
        except OSError as error:
            raise refusal(settings.address, settings.port, error) from None
        console.print(f"serving on [bold]{address_of(listeners[0], scheme=scheme)}[/]  (Ctrl-C ends it)")
        for address in addresses_elsewhere(listeners, scheme=scheme):
            console.print(f"from other machines: [bold]{address}[/]")
        drain = Drain()
        try:
            app = create_app(backend, settings, keys=keys, drain=drain, observers=[t.observe for t in traces])
            run(app, listeners, _fitted(settings.listening), drain, log_level=settings.log_level)
        finally:
            backend.close()
            for tracing in traces:
                tracing.close()
    if backend.is_busy or app.state.media.is_busy:
        _leave()


def _announced(settings: Settings, listeners: Sequence[socket]) -> AbstractContextManager[None]:
    """Tell the local network about the server, if that is asked for."""
    from contextlib import nullcontext

    if not settings.announce:
        return nullcontext()
    from ..server.process.announcement import announced
    from ..server.process.listening_sockets import hosts_elsewhere

    certificate = settings.certificate
    port = int(listeners[0].getsockname()[1])
    return announced(hosts_elsewhere(listeners), port, None if certificate is None else certificate[0])


def _noted(settings: Settings, listeners: Sequence[socket]) -> AbstractContextManager[None]:
    """Write down where a server that pairs runs, for `hybridge pair`."""
    from contextlib import nullcontext

    from ..server.process.listening_sockets import hosts_elsewhere
    from ..server.process.pairing_folder import RunningServer, likeliest_first

    folder, keys, certificate = settings.pairing_folder, settings.key_file, settings.certificate
    if folder is None or keys is None or certificate is None:
        return nullcontext()
    port = int(listeners[0].getsockname()[1])
    hosts = likeliest_first(hosts_elsewhere(listeners))
    return folder.noted(RunningServer(port, hosts, str(keys.absolute()), str(certificate[0].absolute())))


def _leave() -> None:
    """End the process even if a thread cannot be stopped, for example while loading from a network that hangs.

    All accepted requests are answered or in the spool by now; Python's normal exit is unsafe while the thread runs.
    """
    import logging
    import os
    import sys

    logging.getLogger("hybridge.server").warning("a load, a run or a picture file that does not end is cut off")
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _traces(endpoint: str | None) -> list[Traces]:
    from ..errors import HybridgeError

    if endpoint is None:
        return []
    try:
        from ..server.process.traces import Traces
    except ModuleNotFoundError:
        raise HybridgeError(
            "traces need OpenTelemetry's library", hint="pip install 'hybridge[server,otel]'"
        ) from None
    return [Traces(endpoint)]


def _fitted(listening: ListenOptions) -> ListenOptions:
    """Limit connections to the number of files that the process may open, so that clients cannot use them up."""
    import logging
    from dataclasses import replace

    from ..server.process.server import raise_file_limit

    wanted = listening.limits.max_connections
    possible = raise_file_limit(wanted)
    if possible < wanted:
        logging.getLogger("hybridge.server").warning(
            "%d connections at most, not %d, because of this process's limit on open files", possible, wanted
        )
    return replace(listening, limits=replace(listening.limits, max_connections=possible))
