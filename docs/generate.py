"""Write the generated documents: ``make docs``.  A test compares them with the files."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer import Typer
from typer.testing import CliRunner

from hybridge.cli.application import application
from hybridge.engine.planning.conv_algorithms import DeviceProfile
from hybridge.engine.planning.film_footprint import FilmFootprint
from hybridge.engine.planning.film_plan import leaner, sections_of
from hybridge.engine.planning.film_shape import FilmShape
from hybridge.engine.planning.plan import Mode
from hybridge.engine.planning.tiled_film_plan import bytes_beside, whole_peak_of_tiles
from hybridge.engine.program.lowering import lower, skeleton
from hybridge.engine.program.tiles import Tiles
from hybridge.lab.advisor.advice import advise, picture, title
from hybridge.lab.advisor.network import Link
from hybridge.lab.advisor.presets import PRESETS
from hybridge.lab.estimator.types import Setup
from hybridge.lab.techniques.catalogue import TECHNIQUES
from hybridge.lab.techniques.compatibility import CLASHES, ONE_OF
from hybridge.models import ALIASES, CATALOGUE, TEXT_CATALOGUE, VAE_CLASSES, known_text_sides
from hybridge.models.doctor.causes import CAUSES
from hybridge.units import format_bytes

DOCS = Path(__file__).parent
_NOTE = "<!-- Written by docs/generate.py; `make docs` writes it again. -->\n\n"
#: Plain and of one width, whatever terminal this runs in.
_TERMINAL = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None, "GITHUB_ACTIONS": None}


_SINGLE_FILES = """## Files and folders

| what | how |
|---|---|
| a `.safetensors` in `models/VAE` of A1111 or ComfyUI, in latent diffusion's layout or diffusers' | \
`mine=./vae.safetensors:sdxl` |
| ComfyUI's `wan_2.1_vae`, `wan2.2_vae`, `qwen_image_vae` and `flux2-vae`, in their authors' layouts or \
diffusers' | `mine=./wan_2.1_vae.safetensors`, `qwen-image=./vae.safetensors` |
| a whole checkpoint (SD v1, SDXL, SD3, FLUX.1); its VAE alone is read | `mine=./checkpoint.safetensors` |
| TAESD in two files (`taesd_encoder.safetensors`, `taesd_decoder.safetensors`; also taesdxl, taesd3, taef1, \
taef2, taesana, taeqi2_1), \
as their author publishes them and ComfyUI keeps them | `taesdxl=./models/vae_approx`, \
`mine=./models/vae_approx:taesdxl`, or either file |
| TAEHV in one file, from [its author](https://github.com/madebyollin/taehv/tree/main/safetensors): `taehv`, \
`taehv1_5`, `taew2_1`, `taew2_2`; others of its architecture with `:MODEL` | `small=./taew2_1.safetensors`, \
`small=./taecvx.safetensors:cogvideox-5b` |
| weights beside their `config.json`; a folder; a folder with the `fp16` variant alone | `mine=./vae` |
| a repository's folder in the hub's cache | `mine=~/.cache/huggingface/hub/models--owner--name` |
| `.ckpt`, `.pt`, `.pth`, `.bin` | `hybridge convert model.ckpt model.safetensors`, once |

The VAEs of SD v1 and SDXL have equal shapes, and so have those of SD3 and FLUX.1, but their scaling differs.
Wan 2.1's and Qwen-Image's have equal shapes, too; a file is known by the name under which it was published.
`NAME=FILE:MODEL` names the row of the table below with the right scaling.
Without `:MODEL` the checkpoint around the VAE decides, then a NAME that is in the table \
(`sdxl=./vae.safetensors`); otherwise the file is refused.
The title in `/v1/models` says which row was used.
Files of SDXL run in float32, because their weights may overflow float16 and their shapes do not tell.

In a folder with several TAESDs, `:MODEL` or NAME selects one; the names of the files say which model \
a pair belongs to.
A decoder without its encoder is served, too, and refuses to encode.

A source that exists on disk, begins with `.`, `/` or `~`, or ends like a file of weights is never \
looked up on the hub.
`hybridge convert` reads tensors with `torch.load(weights_only=True)` in a separate process, keeps their dtypes, \
follows `state_dict`, and refuses files with other objects.

## The catalogue
"""


def _verbs(commands: Typer) -> list[str]:
    return [command.name or command.callback.__name__ for command in commands.registered_commands]  # type: ignore[union-attr]


def cli() -> str:
    """docs/cli.md: the help of every verb."""
    verbs = ["", *_verbs(application)]
    for group in application.registered_groups:
        verbs += [group.name or "", *(f"{group.name} {verb}" for verb in _verbs(group.typer_instance))]  # type: ignore[arg-type]
    parts = ["# The command line\n\n"]
    for verb in verbs:
        arguments = [*verb.split(), "--help"]
        shown = CliRunner().invoke(application, arguments, prog_name="hybridge", env=_TERMINAL).stdout
        text = "\n".join(line.rstrip() for line in shown.strip().splitlines())
        parts.append(f"## hybridge {verb}".rstrip() + f"\n\n```text\n{text}\n```\n\n")
    return _NOTE + "".join(parts).rstrip() + "\n"


def models() -> str:
    """docs/models.md: the catalogue."""
    rows = [
        "# Models\n\nAny other VAE of these classes is added with `NAME=PATH_OR_REPO[:subfolder]`,"
        " from a folder or from the Hugging Face Hub: `hybridge serve mine=./my-vae`.\n"
        f"The classes are {', '.join(VAE_CLASSES)}.\n",
        "Weights are downloaded from the hub on first use, as safetensors only; nothing is unpickled.\n",
        _SINGLE_FILES,
        "| name | what | class | source | latents | frames | scaling | on a GPU | because |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for spec in CATALOGUE.values():
        source = (
            "shipped"
            if spec.name == "starter"
            else f"`{spec.source}`{f', {spec.subfolder}' if spec.subfolder else ''}"
        )
        rows.append(
            f"| `{spec.name}` | {spec.title} | {spec.class_name} | {source} |"
            f" {spec.latent_channels} × 1/{spec.spatial_factor} | {spec.frames} | {spec.normalisation} |"
            f" {spec.half or 'float32'} | {spec.half_reason} |"
        )
    aliases = ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    rows.append(
        "\n*Frames* are those of a video that f latent frames decode to; nothing for pictures.\n"
        f"Other names: {aliases}."
    )
    rows.append(
        "\nOn a CPU every model runs in float32 unless `--dtype` says otherwise.\nfloat16 is an order of magnitude"
        " slower there, and bfloat16 is faster on processors that have it, but rounds visibly.\n\n"
        "The tiny autoencoders take latents as pipelines have them.\nSo hybridge passes them latents that a request"
        " scales, by whatever factor, as they are, and applies the parent's scaling to latents in VAE space.\n"
        "The same request thus gives the same picture whether the full or the tiny model is behind the URL."
    )
    rows.append(
        "\n## Text encoders\n\n"
        "A name in both tables serves both parts; `NAME:vae` and `NAME:text` serve one part.\n"
        "Any other pipeline of these classes is added with `NAME=PATH_OR_REPO`, which also serves its VAE if"
        " hybridge supports it.\n\n| name | source | pipeline |\n|---|---|---|"
    )
    for text in TEXT_CATALOGUE.values():
        where = "shipped" if text.name == "starter" else f"`{text.source}`"
        rows.append(f"| `{text.name}` | {where} | {text.class_name} |")
    classes = sorted({name for side in known_text_sides() for name in side.classes})
    rows.append(f"\nThe classes whose text encoders are known: {', '.join(f'`{name}`' for name in classes)}.")
    return _NOTE + "\n".join(rows) + "\n"


def workbench() -> str:
    """docs/workbench.md: written by hand but for its tables."""
    return _with_tables("workbench.md", _TABLES)


def engine() -> str:
    """docs/engine.md: written by hand but for its tables."""
    return _with_tables("engine.md", _ENGINE_TABLES)


def _with_tables(name: str, tables: dict[str, Callable[[], str]]) -> str:
    text = (DOCS / name).read_text(encoding="utf-8")

    def filled(place: re.Match[str]) -> str:
        return f"<!-- generated:{place[1]} -->\n\n{tables[place[1]]()}\n\n<!-- end -->"

    return re.sub(r"<!-- generated:([\w-]+) -->.*?<!-- end -->", filled, text, flags=re.DOTALL)


def techniques() -> str:
    """The catalogue of techniques, and where each claim is made."""
    rows = ["| name | technique | claim | exactness | stage | needs |", "|---|---|---|---|---|---|"]
    for row in TECHNIQUES.values():
        # A claim of our own is made in these documents.
        source = row.source.removeprefix("docs/")
        claim, needs = f"{_cell(row.claim)} [source]({source})", ", ".join(f"`{need}`" for need in row.needs)
        rows.append(f"| `{row.name}` | {row.title} | {claim} | {row.exactness} | {row.stage} | {needs} |")
    return "\n".join(rows)


def presets() -> str:
    """The presets, for both kinds of device."""
    rows = ["| preset | on | techniques, in order | because |", "|---|---|---|---|"]
    for preset in PRESETS.values():
        for kind, recipe in preset.recipes.items():
            names = ", ".join(f"`{name}`" for name in recipe.techniques)
            device = {"cuda": "a GPU", "cpu": "a CPU"}[kind]
            rows.append(f"| `{preset.name}`: {preset.promise} | {device} | {names} | {_cell(recipe.reason)} |")
    return "\n".join(rows)


_ABOUT = {
    "body": "The body of a request",
    "shape": "The shape of latents, and sizes",
    "scaling": "Scaling",
    "numbers": "The numbers of latents",
    "pixels": "Pixels to encode",
    "answer": "What came out",
    "weights": "Folders and weights",
    "file": "Files",
    "server": "Servers",
    "verify": "`hybridge verify`",
}

_DOCTOR = """# The doctor

hybridge looks at what it is sent and at what it makes, and says what is wrong.

- A refusal is JSON: `error` is the sentence, and `cause` is one of the codes below.
- An answer that may not be what was meant has its sentences in `hybridge-warning`, separated by `; `.
  Their codes are in `hybridge-findings`, separated by `, `.
  The client raises a `ServerWarning` with the same sentence.
- What may be meant is never refused.
  The checks are silent for latents of photographs, drawings, noise and single colours, of every model.

`hybridge doctor` runs the same checks on a file, a folder or a server, and exits with 1 for an error:

```sh
hybridge doctor latents.safetensors            # which model's are these, scaled or not?
hybridge doctor latents.npz --model flux --height 1024 --width 1024
hybridge doctor ./my-pipeline                  # weights, scaling, text encoders
hybridge doctor http://gpu-box:8000 --json     # certificate, key, version, clock, models, a small decode
hybridge doctor desktop                        # the same of a server by the name of its profile
```

Statistics are only taken of latents of at least 16×16.
A code keeps its meaning; new ones may be added.

"""


def doctor() -> str:
    """docs/doctor.md: the codes of the doctor."""
    parts = [_DOCTOR]
    for about, title_of in _ABOUT.items():
        causes = [cause for cause in CAUSES.values() if cause.about == about]
        if not causes:
            continue
        rows = [f"## {title_of}\n", "| code | | what it means | what to do |", "|---|---|---|---|"]
        rows += [
            f"| `{c.code}` | {_SEVERITY[c.severity]} | {_cell(c.meaning)} | {_cell(c.advice)} |" for c in causes
        ]
        parts.append("\n".join(rows) + "\n\n")
    return _NOTE + "".join(parts).rstrip() + "\n"


_SEVERITY = {"error": "error", "warning": "warning", "either": "error if certain, else warning"}


def clashes() -> str:
    """The pairs that do not go together, and the places that are taken once."""
    rows = ["| first | second | | reason | what works |", "|---|---|---|---|---|"]
    for clash in CLASHES:
        first, second = (", ".join(f"`{name}`" for name in names) for names in (clash.first, clash.second))
        rows.append(f"| {first} | {second} | {clash.rule} | {_cell(clash.reason)} | {_cell(clash.remedy)} |")
    rows += ["", "A stack has one of each of these:", "", "| | one of | because |", "|---|---|---|"]
    for place in ONE_OF:
        rows.append(f"| {place.place} | {', '.join(f'`{name}`' for name in place.names)} | {_cell(place.reason)} |")
    return "\n".join(rows)


#: Cards, in GB that torch may have.
CARDS_GB = (4, 6, 8, 12, 24)

#: (card, host) in GB, for a pipeline that is larger than both.
MACHINES_GB = ((16, 64), (12, 64), (12, 16), (8, 16), (6, 64), (6, 32))

#: A server on the same gigabit network, as fast as the card at decoding, with the pipeline's own weights.
NEAR = Link("http://gpu-box:8000", "sdxl-original", 0.002, 117e6, 0.21 / 2**20, 2, own_weights=True)

#: The same at the end of a 20 Mbit/s line.
FAR = Link("http://gpu-box:8000", "sdxl-original", 0.03, 2.5e6, 0.21 / 2**20, 2, own_weights=True)

LINKS = {"no server": None, "a server at 1 Gbit/s": NEAR, "a server at 20 Mbit/s": FAR}


def advice() -> str:
    """For every card and every link the choice: what it needs, how long it takes, and which picture it makes."""
    rows = ["| card | server | choice | needs | a picture | which is | next |", "|---|---|---|---|---|---|---|"]
    for card in CARDS_GB:
        for name, link in LINKS.items():
            made = advise(Setup("sdxl"), card * 10**9, link=link)
            choice, second = made.choice, made.runner_up
            rows.append(
                f"| {card} GB | {name} | {title(choice)} | {format_bytes(choice.needs_bytes, decimal=True)} |"
                f" {choice.seconds:.1f} s | {picture(choice)} |"
                f" {f'{title(second)}, {second.seconds:.1f} s' if second else 'nothing'} |"
            )
    return "\n".join(rows)


def large_advice() -> str:
    """The choices for FLUX.1 dev without a server, for cards and hosts."""
    rows = ["| card | host | choice | needs | of the host | a picture |", "|---|---|---|---|---|---|"]
    for card, host in MACHINES_GB:
        choice = advise(Setup("flux-dev"), card * 10**9, ram_bytes=host * 10**9).choice
        rows.append(
            f"| {card} GB | {host} GB | {title(choice)} | {format_bytes(choice.needs_bytes, decimal=True)} |"
            f" {format_bytes(choice.estimate.host_bytes, decimal=True)} | {choice.seconds:.1f} s |"
        )
    return "\n".join(rows)


LTX_091: dict[str, Any] = {
    **{"timestep_conditioning": True, "decoder_inject_noise": (True, True, True, False)},
    **{"decoder_block_out_channels": (256, 512, 1024), "decoder_layers_per_block": (5, 6, 7, 8)},
    **{"decoder_spatio_temporal_scaling": (True, True, True), "upsample_residual": (True, True, True)},
    **{"upsample_factor": (2, 2, 2)},
}

SVD: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
}

#: Classes of video VAEs with a checkpoint's configuration, where it is not the class's own, and the factors from
#: latents to pixels in space and time.
FILMS: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "Wan 2.1": ("AutoencoderKLWan", {}, 8, 4),
    "Wan 2.2": (
        "AutoencoderKLWan",
        {
            **{"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True},
            **{"in_channels": 12, "out_channels": 12, "patch_size": 2},
        },
        16,
        4,
    ),
    "HunyuanVideo": ("AutoencoderKLHunyuanVideo", {}, 8, 4),
    "HunyuanVideo 1.5": ("AutoencoderKLHunyuanVideo15", {}, 16, 4),
    "EasyAnimate": ("AutoencoderKLMagvit", {}, 8, 4),
    "CogVideoX": ("AutoencoderKLCogVideoX", {}, 8, 4),
    "Cosmos 1.0": ("AutoencoderKLCosmos", {}, 8, 8),
    "Mochi": ("AutoencoderKLMochi", {}, 8, 6),
    "KVAE": ("AutoencoderKLKVAEVideo", {}, 8, 4),
    "Allegro": ("AutoencoderKLAllegro", {}, 8, 4),
    "Stable Video Diffusion": ("AutoencoderKLTemporalDecoder", SVD, 8, 1),
    "LTX-Video 0.9.0": ("AutoencoderKLLTXVideo", {}, 32, 8),
    "LTX-Video 0.9.1": ("AutoencoderKLLTXVideo", LTX_091, 32, 8),
    "LTX-2": ("AutoencoderKLLTX2Video", {"decoder_causal": False}, 32, 8),
}

#: (height, width, frames) in pixels.
FILM_SIZES = ((480, 832, 81), (720, 1280, 121))

#: bfloat16 on any CPU.
ON_CPU = DeviceProfile(2, 4, 16 * 2**20, 64)


def films() -> str:
    """What decoding a film takes in each schedule with the smallest steps, of every class that is lowered."""
    head = ("decode, bfloat16 on a CPU", "plain forward", "`strips`", "`frames`", "`rows`", "`lean`", "`spill`")
    rows = [f"| {' | '.join((*head, 'work', 'first frame'))} |", "|---|---|---|---|---|---|---|---|---|"]
    for name, (class_name, config, side, every) in FILMS.items():
        program = lower(skeleton(class_name, config), "decode")
        for height, width, frames in FILM_SIZES:
            size = height // side, width // side
            film = (frames - 1) // every + 1, *size
            shape = FilmShape(program, 1, *film, ON_CPU)
            plain, made_frames = shape.whole_peak(), shape.extents[-1][0]
            count = beside = 0
            if program.tiles is not None:  # one of which runs at a time
                count, beside = program.tiles.count(*film), bytes_beside(program, 1, *film, ON_CPU)
                plain = whole_peak_of_tiles(program, 1, *film, ON_CPU)
                shape = FilmShape(program, 1, *program.tiles.source, ON_CPU)
            made = {
                mode: FilmFootprint(shape, sections, 2**24) for mode, sections in dict(sections_of(shape)).items()
            }
            peaks = [
                format_bytes(made[mode].peak_bytes + beside) if mode in made else ""
                for mode in ("strips", "frames", "rows")
            ]
            lean = [*leaner(shape, 2**24)][-1:]
            spilled = made["strips"]
            while (more := spilled.with_more_parked()) is not None:
                spilled = more
            cells = [
                f"{name}, {size[0] * side}×{size[1] * side}, {made_frames} frames",
                format_bytes(plain),
                *peaks,
                *([format_bytes(one.peak_bytes + beside) for one in lean] or [""]),
                format_bytes(spilled.peak_bytes + beside),
                f"{max(count, 1) * sum(shape.flops) / 1e12:.0f} TFLOP",
                _first_frame(made, program.tiles, film),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _first_frame(made: dict[Mode, FilmFootprint], tiles: Tiles | None, film: tuple[int, int, int]) -> str:
    """Say how much of the work comes before the first frame is final."""
    if tiles is not None:
        return f"after {1 / tiles.grid(*film)[0]:.0%}"
    return f"after {made['frames'].first_frame:.0%}" if "frames" in made else "at the end"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


_TABLES = {
    "catalogue": techniques,
    "presets": presets,
    "clashes": clashes,
    "advice": advice,
    "large": large_advice,
}

_ENGINE_TABLES = {"films": films}

DOCUMENTS = {
    "cli.md": cli,
    "doctor.md": doctor,
    "engine.md": engine,
    "models.md": models,
    "workbench.md": workbench,
}

if __name__ == "__main__":
    for name, write in DOCUMENTS.items():
        (DOCS / name).write_text(write(), encoding="utf-8")
        print(DOCS / name)  # noqa: T201 - a script that says what it wrote
