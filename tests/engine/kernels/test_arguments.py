"""The structs that C takes are the same in arguments.h, as a C compiler lays them out, and in arguments.py."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybridge.engine.kernels import arguments, attention_kernels, conv_kernels, gemm_kernels, group_norm_kernels
from hybridge.engine.kernels.arguments import OF_FUNCTIONS, Arguments

from .test_tensor_pointers import CALLS

_HEADER = Path(arguments.__file__).with_name("arguments.h")
_COMPILER = shutil.which("cc") if sys.platform == "linux" else None
_KINDS = {
    ctypes.c_void_p: "pointer",
    ctypes.c_ssize_t: "size",
    ctypes.c_int: "int",
    ctypes.c_float: "float",
    ctypes.c_uint: "unsigned",
}


def program() -> str:
    """A C program that prints every field's offset, size and type, and every struct's size.

    It does not compile where a struct in C has another number of fields, or a function takes another struct.
    """
    lines = [
        "#include <stdio.h>",
        f'#include "{_HEADER}"',
        '#define KIND(field) _Generic((field), ptrdiff_t: "size", int: "int", float: "float", \\',
        '                             unsigned: "unsigned", default: "pointer")',
    ]
    for function, struct in OF_FUNCTIONS.items():
        zeros = ", ".join("0" for _ in struct._fields_)
        lines += [
            f"static const struct {function}_args {function}_zeros = {{{zeros}}};",
            f'_Static_assert(_Generic({function}, void (*)(const struct {function}_args *): 1, default: 0), "");',
        ]
    lines.append("int main(void) {")
    for function, struct in OF_FUNCTIONS.items():
        lines.append(f'    printf("{function} %zu\\n", sizeof(struct {function}_args));')
        lines += [
            f'    printf("{function}.{name} %zu %zu %s\\n", offsetof(struct {function}_args, {name}), '
            f"sizeof({function}_zeros.{name}), KIND({function}_zeros.{name}));"
            for name, _ in struct._fields_
        ]
    return "\n".join([*lines, "}\n"])


def layout_in_python() -> list[str]:
    lines = []
    for function, struct in OF_FUNCTIONS.items():
        lines.append(f"{function} {ctypes.sizeof(struct)}")
        for name, kind in struct._fields_:
            field = getattr(struct, name)
            lines.append(f"{function}.{name} {field.offset} {field.size} {_KINDS[kind]}")
    return lines


@pytest.mark.skipif(_COMPILER is None, reason="no C compiler for Linux, so nothing was compiled")
def test_ctypes_lays_out_every_struct_as_c_does(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # a sanitizer, which the compiler does not need
    source, executable = tmp_path / "layout.c", tmp_path / "layout"
    source.write_text(program())
    strict = ["-std=gnu11", "-Wextra", "-Werror", "-Wno-unused-const-variable"]
    subprocess.run([_COMPILER, *strict, "-o", executable, source], check=True)
    out = subprocess.run([executable], check=True, capture_output=True, text=True).stdout
    assert out.splitlines() == layout_in_python()


@pytest.fixture
def given(monkeypatch) -> list[type[Arguments]]:
    """The structs that were made, each of which must have been given all of its fields."""
    made: list[type[Arguments]] = []

    def recorded(struct: type[Arguments]) -> Callable[..., Arguments]:
        def make(**fields: Any) -> Arguments:
            assert set(fields) == {name for name, _ in struct._fields_}
            made.append(struct)
            return struct(**fields)

        return make

    for module in (attention_kernels, conv_kernels, gemm_kernels, group_norm_kernels):
        for name, struct in vars(module).copy().items():
            if struct in OF_FUNCTIONS.values():
                monkeypatch.setattr(module, name, recorded(struct))
    return made


@pytest.mark.parametrize("name", CALLS)
def test_every_field_is_given(name, given) -> None:
    call = CALLS[name]()
    given.clear()
    call.call(**call.tensors)
    assert len(given) == 1


@pytest.mark.parametrize("struct", OF_FUNCTIONS.values(), ids=lambda struct: struct.__name__)
def test_an_unknown_field_is_an_error(struct) -> None:
    with pytest.raises(AttributeError, match="no_such_field"):
        struct(no_such_field=1)
