"""diffusers' decode behind Ray Serve, as its documentation would have it: one replica for each model.

Ray reads the annotations of methods at run time, so they are not kept as text here.
"""

import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

#: Requests that one replica may hold; those beyond it wait in Ray's proxy.
_MOST_REQUESTS = 100


class _Decode:
    """One model.  The decode has a thread of its own, so that the replica goes on taking requests."""

    def __init__(self, model: str, picture_format: str, threads: int) -> None:
        from ..served_model import Module

        # Ray tells torch in a replica to use one, which leaves the other cores idle.  Another environment
        # would help as well, but for that Ray starts a new process, which takes long.
        self._module, self._format = Module(model, picture_format, threads), picture_format
        self._thread = ThreadPoolExecutor(1)

    async def __call__(self, request: Any) -> Any:
        import asyncio

        from starlette.responses import Response

        data, headers = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._answer, await request.body()
        )
        return Response(data, media_type=f"image/{self._format}", headers=headers)

    def _answer(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        return self._module.write(self._module.decode(body))


def run(job: dict[str, Any]) -> None:
    """Serves until it is ended."""
    ray: Any = importlib.import_module("ray")
    serve: Any = importlib.import_module("ray.serve")
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": job["port"]})
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    for name, model in job["models"]:
        deployment = serve.deployment(_Decode, name=name, max_ongoing_requests=_MOST_REQUESTS)
        serve.run(deployment.bind(model, job["format"], threads), name=name, route_prefix=f"/{name}")
    threading.Event().wait()
