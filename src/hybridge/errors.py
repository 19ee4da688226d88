"""All errors that hybridge raises on purpose.

::

    HybridgeError
    ├── RequestError              the request cannot be answered as it is
    │   ├── UnknownParameter      a parameter name that this version does not know
    │   ├── NoPreview             the server cannot make a preview for this model
    │   ├── UnsupportedMedia      the body has a format that hybridge does not read
    │   ├── TooLarge              a limit would be exceeded; nothing was allocated
    │   ├── TooSlow               the client stopped in the middle of the body
    │   ├── UnknownModel          the server does not serve this model
    │   ├── KeyNeeded             no key was sent, or an unknown one
    │   ├── AdminNeeded           the key may not manage keys
    │   ├── PairingRefused        the invitation is not known, was used, or is over
    │   ├── UnknownKey            no key has this name
    │   ├── KeyExists             a key of this name exists already
    │   ├── UnknownJob            no such job, or it belongs to another client
    │   ├── NotDone               the job has no result yet
    │   └── AmbiguousModel        several models fit the request
    ├── ModelUnavailable          the weights cannot be loaded or are wrong
    ├── ReplicaUnavailable        no replica can run the job, or one was lost with it
    │   └── ReplicaLost           a replica or a device ended with the job
    ├── Overloaded                the queue is full; says when to try again
    ├── ShuttingDown              the server accepts no more requests
    ├── ClientGone                the client closed its connection before the answer
    ├── DeadlinePassed            the request's time is over
    ├── StorageFailure            the disk for async jobs cannot be written
    │   └── StorageFull           the disk for async jobs is full
    ├── EngineFailure             the model's forward failed
    │   ├── OutOfMemory           the device has too little memory
    │   ├── CannotLower           the engine does not support this module's structure
    │   └── Stopped               the run was stopped on request
    └── ClientError               an error in the client's communication with a server
        ├── ServerUnreachable     no connection
        ├── ServerTimeout         no answer in time
        ├── BadAnswer             not a valid answer (a web page, a truncated response)
        ├── Mismatch              the server's models do not fit the client's pipeline
        └── ServerRefused         the server answered with an error

Messages say what was seen, what was expected and what to try next.  This module imports no other module of
hybridge, so every package may use it; :mod:`hybridge.protocol.failure` has the HTTP status of each error.
"""

from __future__ import annotations

from collections.abc import Callable


class HybridgeError(Exception):
    """The base class.  ``str(error)`` is one paragraph for users; its parts are attributes for programs.

    Args:
        what: The problem, in a few words.
        saw: The value that was seen.
        expected: The value that was expected.
        hint: The next thing to try.
        cause: The code of the cause, one of :mod:`hybridge.models.doctor.causes`; None if it has no code.
    """

    def __init__(
        self,
        what: str,
        *,
        saw: object = None,
        expected: object = None,
        hint: str | None = None,
        cause: str | None = None,
    ) -> None:
        self.what = what
        self.cause = cause
        self.saw = None if saw is None else str(saw)
        self.expected = None if expected is None else str(expected)
        self.hint = hint
        super().__init__(self._sentence())

    def reword(self, change: Callable[[str], str]) -> None:
        """Apply ``change`` to every part of the text."""
        self.what = change(self.what)
        self.saw = None if self.saw is None else change(self.saw)
        self.expected = None if self.expected is None else change(self.expected)
        self.hint = None if self.hint is None else change(self.hint)
        self.args = (self._sentence(),)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are pickled between processes; subclasses need keyword arguments that the default does not pass.
        return _restore, (type(self), self.args, self.__dict__)

    def _sentence(self) -> str:
        details = [f"{label} {value}" for label, value in (("saw", self.saw), ("expected", self.expected)) if value]
        text = f"{self.what}: {', '.join(details)}" if details else self.what
        return f"{text}. Try: {self.hint}" if self.hint else text


def _restore(kind: type[HybridgeError], args: tuple[object, ...], state: dict[str, object]) -> HybridgeError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


class RequestError(HybridgeError):
    """The request cannot be answered as it is."""


class UnknownParameter(RequestError):
    """A parameter has an unknown name; the client or the server may be older than the other."""


class NoPreview(RequestError):
    """This server cannot make a preview for this model."""


class UnsupportedMedia(RequestError):
    """The body has a format that hybridge does not read."""


class TooLarge(RequestError):
    """Answering would exceed a limit.  Raised before any memory is taken.

    Attributes:
        least_bytes: The smallest sufficient budget, if memory is the limit.
    """

    def __init__(
        self,
        what: str,
        *,
        saw: object = None,
        expected: object = None,
        hint: str | None = None,
        least_bytes: int | None = None,
    ) -> None:
        self.least_bytes = least_bytes
        super().__init__(what, saw=saw, expected=expected, hint=hint)


class TooSlow(RequestError):
    """The client stopped in the middle of the body, and the server stopped waiting."""


class UnknownModel(RequestError):
    """The server serves no model with this name."""


class KeyNeeded(RequestError):
    """The server requires a key, and no valid key was sent."""


class AdminNeeded(RequestError):
    """The key that was sent may not manage the server's keys."""


class PairingRefused(RequestError):
    """No invitation has the token that was sent: it is not known, was used, or is over."""


class UnknownKey(RequestError):
    """The server has no key of this name, or no file of keys at all."""


class KeyExists(RequestError):
    """A key of this name exists already."""


class UnknownJob(RequestError):
    """The server has no job with this id, or the job belongs to another client."""


class NotDone(RequestError):
    """The job is still queued or running."""


class AmbiguousModel(RequestError):
    """Several served models fit the request, and guessing could give a wrong picture."""


class ModelUnavailable(HybridgeError):
    """The weights cannot be loaded (offline, gated, missing) or are wrong.

    Attributes:
        where: The file or folder concerned; it is part of ``str(error)``, but not shown to clients.
    """

    def __init__(
        self,
        what: str,
        *,
        saw: object = None,
        expected: object = None,
        hint: str | None = None,
        where: object = None,
    ) -> None:
        self.where = None if where is None else str(where)
        super().__init__(what, saw=saw, expected=expected, hint=hint)

    def _sentence(self) -> str:
        text = super()._sentence()
        return f"{text} (in {self.where})" if self.where else text

    def for_strangers(self) -> ModelUnavailable:
        """Return the error for clients of a server: it names the model and the kind of failure, but no path."""
        if self.where is None:
            return self
        return ModelUnavailable(self.what, hint="another model; the server's log says more")


class ReplicaUnavailable(HybridgeError):
    """No replica can run the job now, or one was lost with a job that is not run twice."""


class ReplicaLost(ReplicaUnavailable):
    """A replica, or a device of this machine, did not end its job.

    Attributes:
        is_dead: Whether it has ended; else it cannot be reached at the moment.
    """

    def __init__(
        self, what: str, *, is_dead: bool, hint: str = "the same request again; the server's log says more"
    ) -> None:
        self.is_dead = is_dead
        super().__init__(what, hint=hint)


class Overloaded(HybridgeError):
    """The queue is full.

    Attributes:
        retry_after_s: Seconds after which a new attempt is likely to be accepted.
    """

    def __init__(self, what: str, *, retry_after_s: float, hint: str | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, hint=hint)


class ShuttingDown(HybridgeError):
    """The server accepts no more requests."""


class ClientGone(HybridgeError):
    """The client closed its connection before it had its answer."""


class DeadlinePassed(HybridgeError):
    """The job was not done within the client's deadline, and was dropped."""


class StorageFailure(HybridgeError):
    """The disk for async jobs cannot be written."""


class StorageFull(StorageFailure):
    """The disk for async jobs is full."""


class EngineFailure(HybridgeError):
    """The model's forward failed."""


class OutOfMemory(EngineFailure):
    """The device has too little memory for this request."""


class CannotLower(EngineFailure):
    """The engine does not support this module's structure; the plain forward still runs it."""


class Stopped(EngineFailure):
    """The run was stopped on request between two strips; its memory is freed."""


class ClientError(HybridgeError, RuntimeError):
    """An error in the communication with a server; it names the server.

    It is also a RuntimeError, because programs written for diffusers' ``remote_decode`` expect one.
    """


class ServerUnreachable(ClientError):
    """No connection could be made, or the connection was lost."""


class ServerTimeout(ClientError):
    """No answer came in time."""


class BadAnswer(ClientError):
    """The answer is not one that a hybridge server gives."""


class Mismatch(ClientError):
    """The server's models do not fit this pipeline; the error names a model that would, and how to start it."""


class ServerRefused(ClientError):
    """The server answered with an error and a reason.

    Attributes:
        status: The HTTP status code.
        code: The server's short name for the kind of error, or None.
        cause: The code of the cause, which docs/doctor.md lists, or None.
        retry_after_s: Seconds after which the server asks for a new attempt, or None.
    """

    def __init__(
        self,
        what: str,
        *,
        status: int,
        code: str | None = None,
        retry_after_s: float | None = None,
        saw: object = None,
        hint: str | None = None,
        cause: str | None = None,
    ) -> None:
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(what, saw=saw, hint=hint, cause=cause)
