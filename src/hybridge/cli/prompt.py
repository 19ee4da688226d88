"""``hybridge prompt``"""

from __future__ import annotations

from pathlib import Path

import typer

from .options import CA, DEVICE, DTYPE, KEY, SERVER


def prompt(
    prompts: Path = typer.Option(
        ..., "-i", "--input", help="A text file in UTF-8, one prompt a line.", exists=True, dir_okay=False
    ),
    output: Path = typer.Option(
        ..., "-o", "--output", help="A folder: a safetensors file for each prompt, and prompts.jsonl."
    ),
    server: str = SERVER,
    model: str = typer.Option(
        None,
        help="A name of the server's; without a server NAME=FOLDER_OR_REPO, or a name from `hybridge models`.",
        show_default="the server's only one that takes prompts",
    ),
    option: list[str] = typer.Option(
        [],
        "--option",
        metavar="NAME=VALUE",
        help="What else the pipeline takes about text, such as max_sequence_length=256; VALUE is JSON or text.",
    ),
    empty: bool = typer.Option(True, help="Encode the empty prompt, too."),
    jobs: int = typer.Option(4, min=1, max=64, help="Requests to the server that are under way at a time."),
    key: str = KEY,
    ca: str = CA,
    device: str = DEVICE,
    dtype: str = DTYPE,
) -> None:
    """Turn a file of prompts into text embeddings, for training.

    What is there already is not made again, so a run that was broken off can be repeated.
    """

    import contextlib

    from ..client import Client
    from ..errors import HybridgeError, RequestError
    from .console import screen
    from .prompt_encoders import LocalEncoder, PromptEncoder, ServerEncoder
    from .prompt_files import Folder, read_options, read_prompts
    from .tables import progress_bar

    options = read_options(option)
    wanted = read_prompts(prompts, empty=empty)
    if not server and not model:
        raise RequestError(
            "nothing tells which text encoders are meant",
            expected="--model NAME=FOLDER_OR_REPO of a pipeline, or --server",
        )
    with contextlib.ExitStack() as owned:
        encoder: PromptEncoder
        if server:
            encoder = ServerEncoder(owned.enter_context(Client(server, api_key=key, verify=ca)), model)
        else:
            with screen(stderr=True).status(f"loading {model}"):
                encoder = LocalEncoder(model, device, dtype)
            jobs = 1
        folder = Folder(output, encoder, options)
        missing = folder.begin(wanted)
        if folder.found:
            screen(stderr=True).print(f"{folder.found} of {len(wanted)} prompts are there already")
        with progress_bar(screen(stderr=True)) as bar:
            task = bar.add_task("prompts", total=len(wanted), completed=len(wanted) - len(missing))
            refused = folder.fill(missing, jobs, lambda: bar.advance(task))
    screen().print(f"{output}: {len(wanted) - len(refused)} prompts")
    if refused:
        text, error = refused[0]
        raise HybridgeError(
            f"{len(refused)} of {len(wanted)} prompts were refused",
            saw=f"of the first, {text[:60]!r}: {error}",
            hint="the same command again once these are mended; the others are done",
        )
