"""What turns the prompts of ``hybridge prompt`` into embeddings: a server, or a model on this machine."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import RequestError, ServerRefused
from ..protocol import PromptAnswer

if TYPE_CHECKING:
    from ..client import Client
    from ..engine.text import TextEngine

#: Statuses of refusals that concern one prompt; after any other, the next prompt would fail, too.
_ABOUT_THE_PROMPT = frozenset({400, 413, 422})


class PromptEncoder(ABC):
    """A model that encodes prompts.

    Attributes:
        model: Its name.
    """

    model: str

    @abstractmethod
    def encode(self, prompt: str, options: Mapping[str, Any]) -> PromptAnswer:
        """Return the embeddings of one prompt.

        Raises:
            HybridgeError: when it cannot be encoded.
        """

    @abstractmethod
    def is_about_the_prompt(self, error: BaseException) -> bool:
        """Return whether an error of :meth:`encode` concerns this prompt alone."""


class ServerEncoder(PromptEncoder):
    """A model of a server.

    Args:
        client: The client of the server.
        model: The server's name for the model; None for the only one that takes prompts.
    """

    def __init__(self, client: Client, model: str | None) -> None:
        documents = [document for document in client.models() if "prompt" in (document.get("tasks") or ())]
        names = [str(document.get("name")) for document in documents]
        if model is None and len(names) == 1:
            model = names[0]
        if model is None or model not in names:
            raise RequestError(
                f"{client.server} serves no prompts of {model}" if model else "nothing tells which model is meant",
                saw=", ".join(names) or "no model that takes prompts",
                hint=f"--model {names[0]}" if names else "`hybridge serve` with a model that has text encoders",
            )
        self.model, self._client = model, client

    def encode(self, prompt: str, options: Mapping[str, Any]) -> PromptAnswer:
        own = inspect.signature(self._client.encode_prompt).parameters
        for name in options:
            if name in own:
                raise RequestError(
                    f"`{name}` is no option of a pipeline",
                    saw="an argument of client.encode_prompt",
                    expected="an option about text, such as max_sequence_length",
                )
        made = self._client.encode_prompt(prompt, model=self.model, kind="wire", **options)
        tensors = {name: tuple(value) if isinstance(value, list) else value for name, value in made.items()}
        return PromptAnswer(tensors, made.layouts, made.metadata, made.truncated)

    def is_about_the_prompt(self, error: BaseException) -> bool:
        return isinstance(error, ServerRefused) and error.status in _ABOUT_THE_PROMPT


class LocalEncoder(PromptEncoder):
    """A model on this machine, with the answers that a server would give.

    Args:
        argument: The model, as for ``hybridge serve``.
        device, dtype: As for :class:`EngineOptions`.
    """

    def __init__(self, argument: str, device: str | None, dtype: str | None) -> None:
        from ..engine import EngineOptions, limit_threads
        from ..engine.served_parts import resolve_parts
        from ..engine.text import TextEngine
        from ..server.local_text import facts_of

        text = resolve_parts(argument).text
        if text is None:
            raise RequestError(
                f"{argument} has no text encoders", saw="a VAE alone", expected="NAME=FOLDER_OR_REPO of a pipeline"
            )
        limit_threads()
        options = EngineOptions(device=device or "auto", dtype=dtype or "auto")  # type: ignore[arg-type] # checked there
        self.model = text.name
        self._engine: TextEngine = TextEngine.load(text.source, options, name=text.name)
        self._facts = facts_of(self._engine, text)

    def encode(self, prompt: str, options: Mapping[str, Any]) -> PromptAnswer:
        from ..server.local_text import answer_of

        return answer_of(self._engine.encode({"prompt": prompt, **options}), self._engine, self._facts)

    def is_about_the_prompt(self, error: BaseException) -> bool:
        return isinstance(error, RequestError)
