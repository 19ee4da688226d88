"""What a study is asked: prompts, configurations, and how each is measured.  Pure data, checked; no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import RequestError
from ..harness.names import check_number
from ..harness.typed import Misshapen, parse

#: The pipeline that is made here: SDXL's shape, random weights; see :mod:`.tiny_pipeline`.
TINY = "tiny"

#: The pipeline that the package ships, which draws what :mod:`hybridge.scenes` has captions for.
STARTER = "starter"

#: Both need no network.
OFFLINE = (STARTER, TINY)

#: The configuration that all others are compared with.
BASELINE = "baseline"

DTYPES = ("auto", "float32", "bfloat16", "float16")

#: What makes a folder a pipeline.
INDEX = "model_index.json"

#: Of a file with prompts or with a ladder.
LONGEST_FILE_BYTES = 2**20

#: No tokeniser reads further.
_LONGEST_PROMPT = 10_000

#: (name, highest value) of each number.
_HIGHEST = {"runs": 1000, "steps": 1000, "batch": 64, "size": 16_384, "guidance_scale": 100, "limit_s": 86_400}

#: What stands in paths of pictures and in tables.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A picture that every configuration makes; its name stands in paths and tables."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class Configuration:
    """What is measured in one process.

    Attributes:
        name: The names of its techniques with plus signs between, or ``baseline``.
        techniques: By name, in the order in which they are applied.
    """

    name: str
    techniques: tuple[str, ...]

    @classmethod
    def of(cls, techniques: Sequence[str]) -> Configuration:
        """The configuration with these techniques; the baseline for none."""
        return cls("+".join(techniques) if techniques else BASELINE, tuple(techniques))


@dataclass(frozen=True, slots=True)
class Method:
    """How much is measured of one configuration, unless somebody says otherwise; see ``methods.json``."""

    prompts: tuple[Prompt, ...]
    runs: int
    steps: int
    limit_s: float
    guidance_scale: float
    size: int | None = None


def method_of(pipeline: str) -> Method:
    """How much is measured of a pipeline.

    What the guide measured, with its own prompts (see :data:`..techniques.facts.GUIDE`), in the size that the
    pipeline is made for.  Of the starter, what shows within 20 minutes on two cores which techniques of the whole
    catalogue take effect, and at what loss, on scenes that it was never trained on.  Of the tiny pipeline, which
    techniques take effect.
    """
    kept = json.loads(Path(__file__).with_name("methods.json").read_text(encoding="utf-8"))
    method = kept["methods"].get(pipeline) or kept["methods"]["any"]
    prompts = [prompt for prompt in kept["prompts"] if prompt["name"] in method["prompts"]]
    found: Method = parse(Method, {**method, "prompts": prompts}, f"the method of {pipeline}")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """A whole study.  Two with equal arguments measure the same.  Older records lack what has a default.

    Attributes:
        pipeline: ``starter``, ``tiny``, a folder, or a hub id.
        prompts: Each with its seed.
        configurations: The baseline first.
        runs: Warm pictures of each prompt.
        steps: Of denoising.
        guidance_scale: Of each call.
        size: Side of the pictures in pixels; None for the pipeline's own.
        batch: Pictures of one call.
        device: ``auto`` or any torch device.
        dtype: One of :data:`DTYPES`; ``auto`` is float32 on a CPU, elsewhere the half precision of its kind.
        limit_s: Seconds that one configuration may take.
        server: Address of a hybridge server that techniques may use, without credentials, or None.
    """

    pipeline: str
    prompts: tuple[Prompt, ...]
    configurations: tuple[Configuration, ...]
    runs: int = 0
    steps: int
    guidance_scale: float | None = None
    size: int | None
    batch: int = 1
    device: str = ""
    dtype: str = ""
    limit_s: float = 0.0
    server: str | None = None

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Arguments:
        """From what a record keeps.

        Raises:
            RequestError: when it keeps something else.
        """
        try:
            read: Arguments = parse(cls, kept, "the arguments")
        except Misshapen as wrong:
            raise RequestError("not the arguments of a study", saw=wrong, hint="a new run") from None
        return read

    def techniques_of(self, name: str) -> tuple[str, ...] | None:
        """The techniques of a configuration, or None where it was not asked for."""
        return next((one.techniques for one in self.configurations if one.name == name), None)

    def check(self) -> None:
        """Raises :class:`RequestError` for what cannot be asked, before any process is started."""
        check_pipeline(self.pipeline)
        for name, highest in _HIGHEST.items():
            # A guidance of 0 is how distilled models are called.
            check_number(name, getattr(self, name), highest, may_be_zero=name == "guidance_scale")
        if self.size is not None and self.size % 8:
            raise RequestError("not a size of pictures", saw=self.size, expected="a multiple of 8")
        if self.dtype not in DTYPES:
            raise RequestError("unknown dtype", saw=self.dtype, expected=", ".join(DTYPES))
        if not self.configurations or self.configurations[0].techniques:
            raise RequestError("a study begins with the baseline", saw=[one.name for one in self.configurations])
        for kind, names in (
            ("prompts", [prompt.name for prompt in self.prompts]),
            ("configurations", [configuration.name for configuration in self.configurations]),
        ):
            if not names or len(names) != len(set(names)):
                raise RequestError(f"not a list of {kind}", saw=", ".join(names), expected="names, each once")
        for prompt in self.prompts:
            _check_prompt(prompt)


def check_pipeline(name: str) -> None:
    """Raises :class:`RequestError` for what is no pipeline, as far as can be seen without loading it."""
    folder = Path(name)
    if name in OFFLINE or (folder / INDEX).is_file():
        return
    if folder.exists():
        inside = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "a file"
        is_one_model = folder.is_dir() and (folder / "config.json").is_file()
        raise RequestError(
            f"{name} is not a pipeline",
            saw=inside,
            expected=f"a folder with {INDEX}, as save_pretrained writes it",
            hint="`hybridge bench vae` measures a VAE alone" if is_one_model else None,
        )
    if not _HUB_ID.fullmatch(name):
        raise RequestError(
            "no such pipeline",
            saw=name,
            expected=f"{STARTER}, {TINY}, a folder, or a hub id: stabilityai/sdxl-turbo",
        )


def configurations(
    techniques: Iterable[str] = (), stacks: Iterable[str] = (), ladder: str = ""
) -> tuple[Configuration, ...]:
    """The baseline, then single techniques, stacks and a ladder's lines, each once.

    Args:
        techniques: Each alone.
        stacks: ``a+b+c``.
        ladder: Lines of stacks; what follows a ``#`` is for people.
    """
    lines = (line.partition("#")[0] for line in ladder.splitlines())
    asked = [[], *([name] for name in techniques), *(_split(stack) for stack in (*stacks, *lines))]
    return tuple(dict.fromkeys(Configuration.of(names) for names in asked))


def prompts_of(text: str) -> tuple[Prompt, ...]:
    """From lines of a name, a seed and a prompt: ``bee 2257899453 macro shot of a bee``; a ``#`` begins a remark.

    Raises:
        RequestError: for a line that is none.
    """
    found = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        parts = line.split(maxsplit=2)
        if len(parts) != 3 or not parts[1].isdecimal():
            raise RequestError(
                "not a prompt", saw=repr(line), expected="a name, a seed and a prompt", hint="bee 7 a bee"
            )
        found.append(Prompt(parts[0], parts[2].strip(), int(parts[1])))
    return tuple(found)


def read_short(path: Path) -> str:
    """The text of a file with prompts or with a ladder.

    Raises:
        RequestError: when it is not there, too long, or not text.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST_FILE_BYTES + 1)
        if len(data) > LONGEST_FILE_BYTES:
            raise RequestError(f"{path} is too long", expected=f"at most {LONGEST_FILE_BYTES} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read", saw=error) from None


def _split(stack: str) -> list[str]:
    names = [name.strip() for name in stack.split("+")] if stack.strip() else []
    return [] if names == [BASELINE] else names


def _check_prompt(prompt: Prompt) -> None:
    if not _NAME.fullmatch(prompt.name):
        raise RequestError(
            "not a prompt's name", saw=repr(prompt.name), expected="letters, digits, dots and dashes"
        )
    if not 0 <= prompt.seed < 2**63:
        raise RequestError("not a seed", saw=prompt.seed, expected="a whole number below 2**63")
    if not 0 < len(prompt.prompt) <= _LONGEST_PROMPT:
        raise RequestError(
            "not a prompt", saw=f"{len(prompt.prompt)} characters", expected=f"1 to {_LONGEST_PROMPT}"
        )
