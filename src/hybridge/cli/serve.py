"""``hybridge serve``"""

from __future__ import annotations

import typer

from .options import DEVICE, DTYPE


def serve(
    models: list[str] = typer.Argument(
        None,
        help="Names from `hybridge models`, or NAME=PATH_OR_REPO[:subfolder] for a VAE of your own."
        " The starter model, if none is given.",
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
        help="rounding runs the engine, in strips; bitwise runs diffusers' own forward, slower and larger.",
        show_default="rounding",
    ),
    default_model: str = typer.Option(None, help="For requests that name no model where several fit."),
    queue_limit: int = typer.Option(None, help="Requests that may wait; one more gets 429.", show_default="64"),
    max_body_mib: int = typer.Option(None, help="Largest request body in MiB.", show_default="256"),
    max_pixels: int = typer.Option(None, help="Most pixels in one request.", show_default="4194304"),
    max_batch: int = typer.Option(None, help="Most pictures in one request.", show_default="32"),
    cors: list[str] = typer.Option(None, help="Web origin that may call from a browser; may be repeated."),
    log_level: str = typer.Option(None, help="debug, info, warning or error.", show_default="info"),
) -> None:
    """Serve models over HTTP.

    Every option can also be set as a variable, such as HYBRIDGE_PORT.
    """
    given = {name: value for name, value in locals().items() if value not in (None, [])}

    import logging

    from pydantic import ValidationError
    from rich.console import Console

    from ..errors import HybridgeError
    from ..server.settings import Settings, refuse_unknown_variables

    refuse_unknown_variables()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        named = ".".join(map(str, first["loc"]))
        if not named:
            raise HybridgeError("these settings do not go together", saw=first["msg"]) from None
        raise HybridgeError(f"setting {named} is wrong", saw=first.get("input"), expected=first["msg"]) from None
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the hub's requests, one line each

    from ..engine import Engine, EngineOptions, resolve
    from ..server.app import create_app
    from ..server.local import LocalBackend
    from ..server.running import address_of, bind, run

    console = Console()
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        raise HybridgeError(
            f"cannot listen on {settings.host}:{settings.port}", saw=error.strerror, hint="--port 0 for a free one"
        ) from None
    with listener:
        engines = {}
        options = EngineOptions(settings.device, settings.dtype, settings.exactness)
        for argument in settings.models:
            spec = resolve(argument)
            with console.status(f"loading {spec.name}"):
                engine = engines[spec.name] = Engine.load(spec, options)
            info = f"{str(engine.dtype.value).removeprefix('torch.')} on {engine.device.value}"
            console.print(f"[bold]{spec.name}[/] {info} ({engine.device.reason}; {engine.dtype.reason})")
        backend = LocalBackend(engines, queue_limit=settings.queue_limit)
        console.print(f"serving on [bold]{address_of(listener)}[/]  (Ctrl-C ends it)")
        try:
            run(create_app(backend, settings), listener, log_level=settings.log_level)
        finally:
            backend.close()  # a second Ctrl-C skips the application's own end
