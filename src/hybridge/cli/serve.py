"""``hybridge serve``"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from .options import DEVICE, DTYPE

if TYPE_CHECKING:
    from ..server.process.server import ListenOptions
    from ..server.process.traces import Traces

#: The heading of what there is to say about load, memory and long work.
_LOAD = "Waiting line, memory, long work"


def serve(
    models: list[str] = typer.Argument(
        None,
        help="Names from `hybridge models`, with :vae or :text behind them for one part; NAME=PATH_OR_REPO for a"
        " pipeline of your own, NAME=PATH_OR_REPO[:subfolder] or NAME=FILE[:MODEL] for a VAE. The starter model, if"
        " none is given.",
        show_default=False,
    ),
    host: str = typer.Option(
        None, help="Address to listen on; 0.0.0.0 for other machines.", show_default="127.0.0.1"
    ),
    port: int = typer.Option(None, help="Port; 0 takes a free one.", show_default="8000"),
    device: str = DEVICE,
    dtype: str = DTYPE,
    exactness: str = typer.Option(
        None,
        help="rounding runs the engine, in strips; bitwise runs diffusers' own forward, slower and"
        " larger, whose bits are a client's own with as many threads (see /v1/models).",
        show_default="rounding",
    ),
    default_model: str = typer.Option(None, help="For requests that name no model where several fit."),
    queue_limit: int = typer.Option(None, help="Requests that may wait; one more gets 429.", show_default="64"),
    max_body_mib: int = typer.Option(None, help="Largest request body in MiB.", show_default="256"),
    max_pixels: int = typer.Option(None, help="Most pixels in one request.", show_default="4194304"),
    max_batch: int = typer.Option(None, help="Most pictures in one request.", show_default="32"),
    cors: list[str] = typer.Option(None, help="Web origin that may call from a browser; may be repeated."),
    allowed_hosts: list[str] = typer.Option(
        None,
        "--allowed-host",
        help="Name under which a server on loopback without keys is called, such as a proxy's; may be repeated.",
    ),
    log_level: str = typer.Option(None, help="debug, info, warning or error.", show_default="info"),
    keys: str = typer.Option(None, help="File of API keys, from `hybridge keys add`; without it nobody needs one."),
    public: bool = typer.Option(None, "--public", help="Listen on every address; refused without --keys."),
    max_inflight_mib: int = typer.Option(
        None, help="Most MiB of all bodies that are being received.", show_default="1024"
    ),
    max_connections: int = typer.Option(
        None, help="Most connections; the one that is idle longest makes room.", show_default="4096"
    ),
    max_head_kib: int = typer.Option(None, help="Largest address and headers in KiB.", show_default="32"),
    head_timeout_s: float = typer.Option(None, help="Seconds for the headers to arrive.", show_default="10"),
    body_pause_s: float = typer.Option(None, help="Longest pause within a body in seconds.", show_default="30"),
    tls_cert: str = typer.Option(None, help="File with a certificate in PEM, for HTTPS."),
    tls_key: str = typer.Option(None, help="File with its key."),
    trusted_proxies: list[str] = typer.Option(
        None,
        "--trusted-proxy",
        help="Address or network of a proxy whose X-Forwarded-For is believed; may be repeated.",
    ),
    log_format: str = typer.Option(None, help="people or json.", show_default="people"),
    otlp_endpoint: str = typer.Option(None, help="OpenTelemetry collector's address for traces over HTTP."),
    grace_s: float = typer.Option(
        None, help="Seconds to finish accepted requests when told to end.", show_default="60"
    ),
    queue_work_s: float = typer.Option(
        None,
        help="Seconds of estimated work that may wait; beyond it 429.",
        show_default="300",
        rich_help_panel=_LOAD,
    ),
    queue_mib: int = typer.Option(
        None,
        help="MiB of tensors that may wait; beyond it 429.",
        show_default="1024",
        rich_help_panel=_LOAD,
    ),
    deadline_s: float = typer.Option(
        None,
        help="Seconds after which a request is given up with 504.",
        show_default="never",
        rich_help_panel=_LOAD,
    ),
    memory: str = typer.Option(
        None,
        help="What weights and running work may take together, such as 8GiB; idle models leave for others.",
        show_default="on a CPU 3/4 of what a container or ulimit grants, if any does; else no bound",
        rich_help_panel=_LOAD,
    ),
    preload: bool = typer.Option(
        None,
        "--preload",
        help="Load all models before listening, not when they are first asked for.",
        rich_help_panel=_LOAD,
    ),
    spill: str = typer.Option(
        None,
        help="Folder in which a CPU may park activations, namelessly, when --memory has no room for them.",
        show_default="none: what does not fit is refused",
        rich_help_panel=_LOAD,
    ),
    spool: str = typer.Option(
        None,
        help="Folder in which long work survives the process.",
        show_default="nothing is written to disk",
        rich_help_panel=_LOAD,
    ),
    spool_gib: float = typer.Option(
        None,
        help="GiB that it may take.",
        show_default="8",
        rich_help_panel=_LOAD,
    ),
    jobs_limit: int = typer.Option(
        None,
        help="Jobs that are kept, with their results.",
        show_default="1000",
        rich_help_panel=_LOAD,
    ),
    jobs_mib: int = typer.Option(
        None,
        help="MiB that they may take without a spool.",
        show_default="1024",
        rich_help_panel=_LOAD,
    ),
    prompt_cache_mib: int = typer.Option(
        None,
        help="MiB of text embeddings that are kept in memory for who asks for them again; 0 keeps none.",
        show_default="256",
        rich_help_panel=_LOAD,
    ),
    job_ttl_s: float = typer.Option(
        None,
        help="Seconds for which a result is kept.",
        show_default="3600",
        rich_help_panel=_LOAD,
    ),
) -> None:
    """Serve models over HTTP.

    Every option can also be set as a variable, such as HYBRIDGE_PORT.
    """
    given = {name: value for name, value in locals().items() if value not in (None, [])}

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
    ring = check_opening(settings)

    from ..engine import EngineOptions, granted_memory, keep_pieces, limit_threads
    from ..engine.served_parts import resolve_parts
    from ..server.app import create_app
    from ..server.local_backend import LocalBackend
    from ..server.middleware.draining import Drain
    from ..server.process.listening_sockets import addresses_elsewhere, opened, refusal
    from ..server.process.server import BACKLOG, address_of, run
    from ..units import format_bytes
    from .console import screen

    console = screen()
    with opened(settings.address, settings.port) as listeners:
        keep_pieces()  # before there are threads
        limit_threads()
        traces = _traces(settings.otlp_endpoint)
        memory_bytes = settings.memory or granted_memory(settings.device)
        if settings.memory is None and memory_bytes is not None:
            console.print(
                f"memory for weights and runs: {format_bytes(memory_bytes)}, which this process is granted"
            )
        models_parts = [resolve_parts(argument) for argument in settings.models]
        backend = LocalBackend(
            {},
            cold=[parts.vae for parts in models_parts if parts.vae is not None],
            texts=[parts.text for parts in models_parts if parts.text is not None],
            prompt_cache_bytes=settings.prompt_cache_mib * 2**20,
            options=EngineOptions(settings.device, settings.dtype, settings.exactness, settings.spill),
            limits=settings.line_limits,
            memory_bytes=memory_bytes,
        )
        for info in backend.info():
            if settings.preload:
                with console.status(f"loading {info.part}"):
                    backend.preload(info.part)
            dtype = f"{info.dtype} " if info.dtype else ""
            chosen = f"{dtype}on {info.device} ({info.device_reason}; {info.dtype_reason})"
            console.print(f"[bold]{info.part}[/] {chosen}")
        scheme = "https" if settings.tls_cert else "http"
        try:
            for listener in listeners:
                listener.listen(BACKLOG)  # so that whoever reads the next line can connect
        except OSError as error:
            raise refusal(settings.address, settings.port, error) from None
        console.print(f"serving on [bold]{address_of(listeners[0], scheme=scheme)}[/]  (Ctrl-C ends it)")
        for address in addresses_elsewhere(listeners, scheme=scheme):
            console.print(f"from other machines: [bold]{address}[/]")
        drain = Drain()
        try:
            app = create_app(backend, settings, keys=ring, drain=drain, observers=[t.observe for t in traces])
            run(app, listeners, _fitted(settings.listening), drain, log_level=settings.log_level)
        finally:
            backend.close()
            for tracing in traces:
                tracing.close()
    if backend.is_busy or app.state.media.is_busy:
        _leave()


def _leave() -> None:
    """Ends the process beside a thread that cannot be stopped, such as a load from a network that hangs.

    Everything that was accepted is answered or in the spool by now; Python's own end would trip over the thread.
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
    """With no more connections than this process may open files; otherwise strangers could use them all up."""
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
