"""One request, answered by a server or by a model on this machine."""

from __future__ import annotations

from ..protocol import Answer, Request


def answer(
    request: Request,
    *,
    model: str,
    server: str | None,
    key: str | None,
    ca: str | None,
    device: str | None,
    dtype: str | None,
) -> Answer:
    """What becomes of a request; shows on the terminal what is being done.

    Raises:
        HybridgeError: whatever goes wrong.
    """

    from .screen import screen

    console = screen(stderr=True)
    if server:
        from ..client import Client

        with Client(server, api_key=key, verify=ca) as client, console.status(f"{model} on {server}"):
            return client.send(request, model=model).answer

    import asyncio

    from ..engine import Engine, EngineOptions, fit_threads, resolve
    from ..server.jobs import admit, finish
    from ..server.limits import Limits
    from ..server.local import LocalBackend

    fit_threads()
    spec = resolve(model)
    options = EngineOptions(device=device or "auto", dtype=dtype or "auto")  # type: ignore[arg-type] # checked there
    backend = LocalBackend({spec.name: Engine.load(spec, options)})
    try:
        # One's own machine, one's own memory: no limit on size.
        job = admit(request, spec, Limits(max_pixels=2**40, max_batch=2**20))
        with console.status(f"{spec.name} on this machine, {job.pixels / 1e6:.1f} megapixels"):
            return finish(job, asyncio.run(backend.run(job)))
    finally:
        backend.close()
