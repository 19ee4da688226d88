"""Tables and plot of a record whose numbers are chosen so that the answers can be done in one's head."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from hybridge.lab.harness.record import Record
from hybridge.lab.vae_bench.report import drawing, markdown, tables

MIB = 2**20
CASE = {"task": "decode", "size": 512, "dtype": "float32"}
JUDGED = {"reference": "float32", "psnr_db": 60.0}


def entries(rival: str, rounds: list[list[float]], **judged: Any) -> list[dict[str, Any]]:
    made = [{**CASE, "rival": rival, "round": number, "seconds": s} for number, s in enumerate(rounds)]
    made[0] |= judged
    return made


def roof(number: int, speed: float) -> dict[str, Any]:
    shape = {"in_channels": 8, "out_channels": 8, "kernel": 3, "stride": 1, "flops": 10**12}
    speeds = {"cached": speed, "large": speed / 2}
    about = {"flops": 11 * 10**11, "attention_flops": 10**11, "matmul_flops_per_s": 10**12}
    return {**CASE, "round": number, "convolutions": [{**shape, "flops_per_s": speeds}], **about}


@pytest.fixture
def record() -> Record:
    plan = {"mode": "strips", "reason": "because", "peak_bytes": 400 * MIB, "flops": 11 * 10**11}
    measurements = [
        *entries("exact", [[2.0, 2.2, 2.1], [1.9]], peak_bytes=440 * MIB, relative_l2=2e-6, plan=plan, **JUDGED),
        *entries("diffusers", [[4.0], [4.0]], peak_bytes=800 * MIB, relative_l2=1e-6, **JUDGED),
        *entries("tiled", [[6.0], [6.0]], peak_bytes=100 * MIB, relative_l2=0.05, tile_pixels=256, **JUDGED),
        *[{**CASE, "rival": "openvino", "round": n, "missing": "openvino is not installed"} for n in (0, 1)],
        *entries("compile", [[3.0]], no_reference="the plain forward does not fit"),
    ]
    return {
        "schema": 2,
        "benchmark": "vae",
        "date": "2026-01-02",
        "environment": {
            "cpu": "A processor",
            "threads": 2,
            "cores": 4,
            "capability": "AVX2",
            "torch": "2.13.0",
            "diffusers": "0.42.1",
            "openvino": None,
            "hybridge": "0.1.0",
        },
        "arguments": {
            "task": "decode",
            "sizes": [512, 1024],
            "dtypes": ["float32"],
            "repeats": 2,
            "seed": 0,
            "rivals": ["exact", "diffusers", "tiled", "compile", "openvino"],
        },
        "model": {"name": "sd-v1", "weights": "random"},
        "roofs": [roof(0, 0.5e12), roof(1, 1e12)],
        "measurements": measurements,
    }


def test_the_roof_comes_first(record: Record) -> None:
    first = tables(record)[0]
    assert first.title == "The roof"
    # 1 TFLOP at the better round's 1 TFLOP/s, and 0.1 TFLOP of attention at 1 TFLOP/s.
    assert first.rows[0] == ("decode 512×512, float32", "1.1", "1000", "1000", "1.10")
    assert first.rows[1] == ("decode 1024×1024, float32", "–", "–", "–", "–")


def test_the_documentation_s_table_with_ours_beside_it(record: Record) -> None:
    table = tables(record)[1]
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row == {
        "Device": "A processor",
        "Resolution": "512x512",
        "dtype": "float32",
        "Time (seconds)": "4.00",
        "Memory": "800 MiB",
        "Tiled Time (seconds)": "6.00",
        "Tiled Memory": "100 MiB",
        "Exact Time (seconds)": "2.00",
        "Exact Memory": "440 MiB",
        "Tiled Error": "5.0e-02",
        "Exact Error": "2.0e-06",
    }
    assert set(table.rows[1][3:]) == {"–"}


def test_every_rival_beside_roof_and_exact(record: Record) -> None:
    table = tables(record)[2]
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    exact, tiled = rows["exact"], rows["diffusers, tiled"]
    assert (exact["s"], exact["rounds, s"]) == ("2.00", "1.90 … 2.10")
    assert (exact["× roof"], exact["× exact"]) == ("1.82", "1.00")
    assert (exact["peak"], exact["planned peak"], exact["remark"]) == ("440 MiB", "400 MiB", "mode strips")
    assert (tiled["× exact"], tiled["error"], tiled["PSNR, dB"]) == ("3.00", "5.0e-02", "60.0")
    assert tiled["remark"] == "tiles of 256"
    assert rows["torch.compile, channels-last"]["remark"] == "no reference: the plain forward does not fit"
    assert rows["OpenVINO"]["remark"] == "missing: openvino is not installed"
    assert rows["OpenVINO"]["s"] == "–"


def test_the_page_has_every_table_and_says_what_was_run_where(record: Record) -> None:
    page = markdown(record)
    assert page.startswith("# sd-v1, decode, on A processor\n\nrandom weights, seed 0; 2 rounds")
    assert "OpenVINO not installed" in page
    for table in tables(record):
        assert f"\n## {table.title}\n" in page
        for row in table.rows:
            assert f"\n| {' | '.join(row)} |\n" in page


@pytest.mark.parametrize("kept", [True, False])
def test_the_plot_is_a_picture_even_of_nothing(record: Record, kept: bool) -> None:
    drawn = drawing(record if kept else record | {"measurements": []})
    picture = ElementTree.fromstring(drawn)  # noqa: S314 - our own text
    assert picture.tag == "{http://www.w3.org/2000/svg}svg"
    # Of three rivals that have a peak, each where its memory and its time are.
    points = [(float(point.attrib["cx"]), float(point.attrib["cy"])) for point in picture.findall(".//{*}circle")]
    assert len(points) == (3 if kept else 0)
    if kept:
        exact, diffusers, tiled = points
        assert tiled[0] < exact[0] < diffusers[0]
        assert tiled[1] < diffusers[1] < exact[1]  # upwards is less
    assert any("nothing was measured" in (text.text or "") for text in picture.iter()) is not kept
