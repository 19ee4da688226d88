"""One request, answered by a server or by a model on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    return next(answers([request], model=model, server=server, key=key, ca=ca, device=device, dtype=dtype))


def answers(
    requests: Sequence[Request],
    *,
    model: str,
    server: str | None,
    key: str | None,
    ca: str | None,
    device: str | None,
    dtype: str | None,
) -> Iterator[Answer]:
    """What becomes of each request, one after the other by one client or one loaded model.

    Raises:
        HybridgeError: whatever goes wrong.
    """

    from .console import screen

    console = screen(stderr=True)
    if server:
        from ..client import Client

        with Client(server, api_key=key, verify=ca) as client:
            for request in requests:
                with console.status(f"{model} on {server}"):
                    answered = client.send(request, model=model).answer
                yield answered
        return

    import asyncio

    from ..engine import Engine, EngineOptions, limit_threads, resolve
    from ..server.local_backend import LocalBackend
    from ..server.scheduling.job import admit, finish
    from ..server.scheduling.limits import Limits

    limit_threads()
    spec = resolve(model)
    options = EngineOptions(device=device or "auto", dtype=dtype or "auto")  # type: ignore[arg-type] # checked there
    backend = LocalBackend({spec.name: Engine.load(spec, options)})
    try:
        # One's own machine, one's own memory: no limit on size.
        limits = Limits(max_pixels=2**40, max_batch=2**20)
        for request in requests:
            job = admit(request, spec, limits)
            with console.status(f"{spec.name} on this machine, {job.size.pixels / 1e6:.1f} megapixels"):
                answered = finish(job, asyncio.run(backend.run(job)))
            yield answered
    finally:
        backend.close()
