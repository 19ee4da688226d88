"""One pipeline, run with its VAE beside it and in three hybrid ways, and how equal the pictures are."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import small_vaes
import torch
from case import Case

import hybridge
from hybridge.engine import Engine, EngineOptions
from hybridge.engine.loading import resolve
from hybridge.errors import HybridgeError, ModelUnavailable, TooLarge
from hybridge.server.app import create_app
from hybridge.server.local_backend import LocalBackend
from hybridge.server.process.server import running

#: The server's name for a case's own VAE.
MODEL = "own"

#: The largest difference of two numbers in [0, 1] that is rounding: half a step of an 8-bit picture.
ROUNDING = 1 / 510

WAYS = ("connect", "vae=None", "exact")


@dataclass(frozen=True)
class Outcome:
    """How one way went.

    Attributes:
        kind: ``bitwise``, ``rounding``, ``refused``, ``wrong``, ``crashed``, or ``none``: there is no such way.
        difference: The largest one, for pictures whose numbers lie in [0, 1].
        said: The sentence of a refusal or crash, or what had to be named.
    """

    kind: str
    difference: float | None = None
    said: str = ""


def run(case: Case, names: Sequence[str] = WAYS) -> dict[str, Any]:
    """Tries a case in these ways; a record in JSON's types."""
    record: dict[str, Any] = {"family": case.family, "name": case.name}
    try:
        components = case.components()
        vae = components.get(case.vae_name)
        expected = _picture(_built(case, components), case)
    except Exception as error:
        return {**record, "local": _last_line(error)}
    record["vae"] = type(vae).__name__
    record["spread"] = float(np.std(expected))
    with tempfile.TemporaryDirectory() as folder, _served(vae, folder) as (address, is_own):
        ways: dict[str, Callable[[], Outcome]] = {
            "connect": lambda: _connected(case, case.components(), expected, address, is_own),
            "vae=None": lambda: _connected(
                case, {**case.components(), case.vae_name: None}, expected, address, is_own
            ),
            "exact": lambda: _exact(case, expected),
        }
        for name in names:
            record[name] = asdict(ways[name]())
    return record


def _built(case: Case, components: dict[str, Any]) -> Any:
    pipe = case.make(**components)
    for part in (pipe, *(value for value in vars(pipe).values() if hasattr(value, "set_progress_bar_config"))):
        part.set_progress_bar_config(disable=True)
    return pipe


def _picture(pipe: Any, case: Case) -> np.ndarray[Any, Any]:
    """What a call gives, as one array."""
    torch.manual_seed(0)
    np.random.seed(0)
    result = pipe(**case.inputs(pipe))
    return _array(result[0] if isinstance(result, tuple) else next(iter(result.values())))


def _array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, list | tuple):
        return np.stack([_array(item) for item in value])
    if isinstance(value, torch.Tensor):
        return value.detach().float().numpy()
    array = np.asarray(value)
    return array / np.float32(255) if array.dtype == np.uint8 else array


@contextmanager
def _served(vae: Any, folder: str) -> Iterator[tuple[str, bool]]:
    """A server with the VAE, and True; where hybridge does not serve its kind, with another one, and False."""
    # The plain module, so that nothing but the way through the pipeline and the wire can make a difference.
    options = EngineOptions(device="cpu", dtype="float32", exactness="bitwise")
    is_own = True
    try:
        vae.save_pretrained(folder)
        spec = resolve(f"{MODEL}={folder}")
    except ModelUnavailable:
        is_own = False
        small_vaes.kl(getattr(vae.config, "latent_channels", 4)).save_pretrained(folder)
        spec = resolve(f"{MODEL}={folder}")
    with running(create_app(LocalBackend({MODEL: Engine.load(spec, options)}))) as address:
        yield address, is_own


def _connected(
    case: Case, components: dict[str, Any], expected: np.ndarray[Any, Any], address: str, is_own: bool
) -> Outcome:
    try:
        pipe = _built(case, components)
    except Exception as error:
        if components.get(case.vae_name) is None:
            return Outcome("none", said=f"its constructor needs a VAE: {_last_line(error)}")
        raise
    refusals: list[str] = []
    for model in (None, MODEL):
        try:
            connection = hybridge.connect(pipe, address, model=model)
        except HybridgeError as error:
            refusals.append(str(error).replace(address, "the server"))
            continue
        except Exception as error:
            return Outcome("crashed", said=f"connect: {_last_line(error)}")
        with connection:
            if not is_own:
                return Outcome("none", said="the class also takes a VAE that is served, and the case has another")
            said = f"model= is asked for: {refusals[0]}" if model else ""
            return _judged(pipe, case, expected, said, pipe.vae)
    return Outcome("refused", said=refusals[-1] if "model=" in refusals[0] else refusals[0])


def _exact(case: Case, expected: np.ndarray[Any, Any]) -> Outcome:
    pipe = _built(case, case.components())
    vae = hybridge.exact(getattr(pipe, case.vae_name))
    ways: list[str] = []
    for task in ("decode", "encode"):
        vae.__dict__[task] = _in_strips(vae, task, getattr(vae, task), ways)
    for part in (pipe, *vars(pipe).values()):
        if getattr(part, case.vae_name, None) is vae.vae:
            setattr(part, case.vae_name, vae)
    outcome = _judged(pipe, case, expected)
    return replace(outcome, said=outcome.said or ", ".join(dict.fromkeys(ways)))


def _in_strips(vae: Any, task: Any, method: Callable[..., Any], ways: list[str]) -> Callable[..., Any]:
    """``method`` within less memory than it takes as a whole, where that can be, so that strips are tried too."""

    def call(*given: Any, **named: Any) -> Any:
        source = given[0] if given else next(iter(named.values()))
        vae.budget_bytes = None
        size = source.shape[0], *source.shape[-2:], *source.shape[2:-2]
        if vae.why_plain(task, source) is None:
            whole = vae.plan(task, *size).peak_bytes
            for share in (0.5, 0.7, 0.9, None):
                vae.budget_bytes = None if share is None else int(whole * share)
                with contextlib.suppress(TooLarge):
                    ways.append(vae.plan(task, *size).mode)
                    break
        return method(*given, **named)

    return call


def _judged(pipe: Any, case: Case, expected: np.ndarray[Any, Any], said: str = "", remote: Any = None) -> Outcome:
    calls: list[str] = []
    if remote is not None:
        for name in ("encode", "decode"):
            remote.__dict__[name] = _counted(getattr(remote, name), calls)
    try:
        found = _picture(pipe, case)
    except HybridgeError as error:
        return Outcome("refused", said=str(error))
    except Exception as error:
        return Outcome("crashed", said=_last_line(error))
    if remote is not None and not calls:
        return Outcome("wrong", said="nothing was asked of the server")
    if found.shape != expected.shape:
        return Outcome("wrong", said=f"{found.shape} where {expected.shape} was expected")
    if np.array_equal(found, expected, equal_nan=True):
        return Outcome("bitwise", 0.0, said)
    difference = float(np.max(np.abs(found.astype(np.float64) - expected)))
    return Outcome("rounding" if difference <= ROUNDING else "wrong", difference, said)


def _counted(method: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        calls.append(method.__name__)
        return method(*given, **named)

    return call


def _last_line(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    inside = frame.filename.partition("site-packages/")[2]
    where = f"{inside or Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} ({where})"
