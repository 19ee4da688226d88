"""What the clouds expect of a container: where they ask for its health and for work, and where the model lies.

Hugging Face's Inference Endpoints, SageMaker and Vertex AI.  Each of them is in front of the server and asks who
calls, so the server asks for no keys.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CloudName = Literal["huggingface", "sagemaker", "vertex"]

#: The name under which the model of a cloud's storage is served.
MODEL_NAME = "model"

#: Characters of a path that have no meaning for the router.
_PATH = re.compile(r"/[A-Za-z0-9._~:@!$&'()*+,;=/-]*")


@dataclass(frozen=True, slots=True)
class Cloud:
    """The conventions of a cloud.

    Attributes:
        health_path: Where it asks whether the server can work, by GET.
        predict_path: Where it posts every request.
        defaults: Settings that hold where none is given.
        has_keys: Whether keys of the server's own reach it.
    """

    health_path: str
    predict_path: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    has_keys: bool = False


def cloud_named(name: CloudName, environment: Mapping[str, str] = os.environ) -> Cloud:
    """Return the conventions of a cloud, with what it has put into the environment.

    Raises:
        ValueError: when a variable of it cannot be used.
    """
    # Healthy means ready: the server listens when the model is loaded.
    everywhere = {"host": "0.0.0.0", "preload": True}  # noqa: S104 - the cloud's proxy is another machine
    if name == "huggingface":
        return Cloud("/health", "/", {**everywhere, "models": _in("/repository")}, has_keys=True)
    if name == "sagemaker":
        port = environment.get("SAGEMAKER_BIND_TO_PORT") or "8080"
        # A request that takes longer is given up by SageMaker.
        return Cloud(
            "/ping",
            "/invocations",
            {**everywhere, "models": _in("/opt/ml/model"), "port": port, "deadline_s": 60},
        )
    defaults = {**everywhere, "port": environment.get("AIP_HTTP_PORT") or "8080"}
    if storage := environment.get("AIP_STORAGE_URI"):
        defaults["models"] = _in(storage)
    return Cloud(
        _path(environment, "AIP_HEALTH_ROUTE", "/health"),
        _path(environment, "AIP_PREDICT_ROUTE", "/predict"),
        defaults,
    )


def _in(storage: str) -> tuple[str, ...]:
    return (f"{MODEL_NAME}={storage.rstrip('/')}",)


def _path(environment: Mapping[str, str], variable: str, default: str) -> str:
    path = environment.get(variable) or default
    if not _PATH.fullmatch(path):
        raise ValueError(f"the variable {variable} is {path[:80]!r}, not a path such as {default}")
    return path
