"""``hybridge doctor``"""

from __future__ import annotations

from pathlib import Path

import typer

from .options import CA, KEY


def doctor(
    target: str = typer.Argument(
        help="A file of latents, a picture or a video; the folder of a VAE or a pipeline; a server's address"
        " or the name of a profile."
    ),
    model: str = typer.Option(None, help="The model that it is for.", show_default="guessed"),
    tensor: str = typer.Option(None, help="Which tensor of a file.", show_default="the latents"),
    height: int = typer.Option(None, help="Of the picture, for packed latents."),
    width: int = typer.Option(None, help="Of the picture, for packed latents."),
    key: str = KEY,
    ca: str = CA,
    as_json: bool = typer.Option(False, "--json", help="For programs."),
) -> None:
    """Say what is wrong with latents, a picture, a folder of weights or a server; exit 1 for an error."""
    from .console import screen
    from .doctor_report import Report

    report = Report(target)
    path = Path(target).expanduser()
    if target.startswith(("http://", "https://")) or (not path.exists() and _is_profile(target)):
        from .doctor_server import look_at_server

        look_at_server(report, target, model, key, ca)
    elif path.is_dir():
        from .doctor_weights import look_at_folder

        look_at_folder(report, path)
    else:
        from .doctor_files import look_at_file

        look_at_file(report, path, model, tensor, height, width)
    if as_json:
        typer.echo(report.to_json())
    else:
        for line in report.lines():
            screen().print(line, markup=False, highlight=False)
    if not report.is_well:
        raise typer.Exit(1)


def _is_profile(name: str) -> bool:
    from ..client.profiles import is_name, load_all

    return is_name(name) and name in {profile.name for profile in load_all()}
