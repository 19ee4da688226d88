"""Every error that hybridge raises on purpose.

::

    HybridgeError
    ├── RequestError              what was sent cannot be answered as it stands
    │   ├── UnknownParameter      a name that this version does not know
    │   ├── NoPreview             nothing here can make one for this model
    │   ├── UnsupportedMedia      the body is in a format that we do not read
    │   ├── TooLarge              a limit would be passed; nothing was allocated
    │   ├── TooSlow               the sender stopped in the middle of the body
    │   ├── UnknownModel          no such model here
    │   ├── KeyNeeded             no key, or one that is not known here
    │   ├── UnknownJob            no such job here, or none that this client may see
    │   ├── NotDone               the job's result is not there yet
    │   └── AmbiguousModel        more than one model fits what was sent
    ├── ModelUnavailable          the weights cannot be had or are not what they should be
    ├── Overloaded                the waiting line is full; knows when to come back
    ├── ShuttingDown              the server no longer takes work
    ├── ClientGone                the client closed its connection; nobody reads this answer
    ├── DeadlinePassed            the time that the sender gave it is over
    ├── StorageFailure            the disk that keeps long work cannot be written
    │   └── StorageFull           it has no room
    ├── EngineFailure             the forward itself failed
    │   ├── OutOfMemory           the device had no room
    │   ├── CannotLower           the exact engine does not know what this module is made of
    │   └── Stopped               it was told to stop, and did
    └── ClientError               seen from the other end of the wire
        ├── ServerUnreachable     no connection
        ├── ServerTimeout         no answer in time
        ├── BadAnswer             an answer, but not one of ours (a web page, a reply cut short)
        ├── Mismatch              the server's models and this program's pipeline do not belong together
        └── ServerRefused         an error that the server explained

Messages say what was seen, what was expected and what to try next.  This module imports nothing, so that
every room may use it; which HTTP status an error becomes is a matter of :mod:`hybridge.protocol.failure`.
"""

from __future__ import annotations

from collections.abc import Callable


class HybridgeError(Exception):
    """The root.  ``str(error)`` is one paragraph for people; the parts stay available to programs.

    Args:
        what: What is wrong, in a few words.
        saw: What was seen.
        expected: What would have been right.
        hint: What to try next.
    """

    def __init__(self, what: str, *, saw: object = None, expected: object = None, hint: str | None = None) -> None:
        self.what = what
        self.saw = None if saw is None else str(saw)
        self.expected = None if expected is None else str(expected)
        self.hint = hint
        super().__init__(self._sentence())

    def reword(self, change: Callable[[str], str]) -> None:
        """Passes every part of the text through ``change``."""
        self.what = change(self.what)
        self.saw = None if self.saw is None else change(self.saw)
        self.expected = None if self.expected is None else change(self.expected)
        self.hint = None if self.hint is None else change(self.hint)
        self.args = (self._sentence(),)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders; subclasses need keyword arguments that the default would not pass.
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
    """What was sent cannot be answered as it stands."""


class UnknownParameter(RequestError):
    """A parameter has a name that is not known here; one of the two sides may be older than the other."""


class NoPreview(RequestError):
    """Nothing on this server can make a preview for this model."""


class UnsupportedMedia(RequestError):
    """The body is in a format that hybridge does not read."""


class TooLarge(RequestError):
    """Answering would pass a limit.  Raised before any memory is taken.

    Attributes:
        least_bytes: The smallest budget that would do, where memory is the limit.
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
    """The sender stopped in the middle of the body, and was not waited for any longer."""


class UnknownModel(RequestError):
    """No model of that name is served here."""


class KeyNeeded(RequestError):
    """This server answers to those who have a key, and none that it knows was sent."""


class UnknownJob(RequestError):
    """No job of that id is kept here, or it belongs to somebody else."""


class NotDone(RequestError):
    """The job is still waiting or running."""


class AmbiguousModel(RequestError):
    """More than one served model fits what was sent, and guessing could give a wrong picture."""


class ModelUnavailable(HybridgeError):
    """The weights cannot be had (offline, gated, missing) or are not what they should be.

    Attributes:
        where: The file or folder that it is about; part of ``str(error)``, and not for strangers.
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
        """What whoever asks a server for the model may know: which model it is, and the kind of failure."""
        if self.where is None:
            return self
        return ModelUnavailable(self.what, hint="another model; the server's log says more")


class Overloaded(HybridgeError):
    """The waiting line is full.

    Attributes:
        retry_after_s: Seconds after which a new try is likely to be taken.
    """

    def __init__(self, what: str, *, retry_after_s: float, hint: str | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(what, hint=hint)


class ShuttingDown(HybridgeError):
    """The server no longer takes work."""


class ClientGone(HybridgeError):
    """The client closed its connection before it had its answer, which therefore nobody reads."""


class DeadlinePassed(HybridgeError):
    """The job was not done within the time that its sender gave it, and was dropped."""


class StorageFailure(HybridgeError):
    """The disk that keeps long work cannot be written."""


class StorageFull(StorageFailure):
    """The disk that keeps long work has no room."""


class EngineFailure(HybridgeError):
    """The forward itself failed."""


class OutOfMemory(EngineFailure):
    """The device had no room for this request."""


class CannotLower(EngineFailure):
    """This module is not made of what the exact engine knows; the plain forward still runs it."""


class Stopped(EngineFailure):
    """The run was told to stop and did so between two strips; its memory is free again."""


class ClientError(HybridgeError, RuntimeError):
    """Something between this program and the server; names the server.

    A RuntimeError as well, because that is what programs written for diffusers' ``remote_decode`` expect.
    """


class ServerUnreachable(ClientError):
    """No connection could be made, or it was lost."""


class ServerTimeout(ClientError):
    """No answer came in time."""


class BadAnswer(ClientError):
    """An answer came, but not one that a hybridge server gives."""


class Mismatch(ClientError):
    """What the server has is not what this pipeline needs; names what would be, and how to start it."""


class ServerRefused(ClientError):
    """The server answered with an error and said why.

    Attributes:
        status: The HTTP status code.
        code: The server's short name for the kind of error, where it gave one.
        retry_after_s: Seconds after which the server asked to be tried again, where it did.
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
    ) -> None:
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        super().__init__(what, saw=saw, hint=hint)
