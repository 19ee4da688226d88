"""``hybridge`` as somebody types it: in this process, or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import forks
import pytest
from forks import SOURCE

from hybridge.cli import main

#: Python that runs the command.
HYBRIDGE = "from hybridge.cli import main; main()"

#: An environment in which rich neither wraps nor colours.
TERMINAL = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "PYTHONWARNINGS": "ignore"}


def hybridge(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command in this process."""
    out, complaints, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", ["hybridge", *map(str, arguments)])
        for name, value in TERMINAL.items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(complaints):
            try:
                main()
            except SystemExit as end:  # what an interpreter does with it
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
                if isinstance(end.code, str):
                    complaints.write(end.code)
    done = subprocess.CompletedProcess(list(map(str, arguments)), status, out.getvalue(), complaints.getvalue())
    assert not check or done.returncode == 0, done.stderr
    return done


def process(*arguments: object, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, without a home, so without models that were fetched before."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": SOURCE, **TERMINAL, **variables}
    return forks.run(HYBRIDGE, *arguments, env=environment, check=check)
