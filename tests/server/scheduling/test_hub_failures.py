"""What the log says of a model that cannot be fetched: one line for each request."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx
import pytest
from hub import serving_hub
from processes import serving_process

QUERY = {"shape": [1, 4, 8, 8], "dtype": "float32"}


@pytest.mark.parametrize("log_format", ["people", "json"])
def test_a_model_that_cannot_be_fetched_is_one_line(tmp_path: Path, specs, log_format: str) -> None:
    repositories = {"madebyollin/taesd": Path(specs["taesd"].source)}
    # The library asks again after 503, and says so for each file; after 404 it gives up.
    with serving_hub(repositories, failing=[503, 503, 503, 404]) as (hub, _):
        variables = {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        arguments = ["taesd", "--device", "cpu", "--log-format", log_format]
        with serving_process(*arguments, **variables) as (process, address, log):
            url = f"{address}/v1/taesd/decode"
            headers = {"content-type": "tensor/binary"}
            with httpx.Client(timeout=120, headers=headers) as client:
                answers = [client.post(url, params=QUERY, content=bytes(1024)) for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            lines = [line for line in log() if "uvicorn" not in line]
    for answer in answers:
        assert answer.status_code == 503
        assert "taesd cannot be downloaded: saw HTTP status 404" in answer.json()["error"]
    logged = [line for line in lines if "cannot be downloaded" in line]
    ends = [line for line in lines if "hybridge.access" in line]
    assert (len(logged), len(ends)) == (2, 2), lines
    assert len(lines) == 4, lines
