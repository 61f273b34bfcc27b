"""The kernels' library: built once, kept in the user's cache, or refused in one sentence."""

import logging
import platform
from pathlib import Path

import pytest

from openlora.kernels.cpu import build
from openlora.kernels.cpu.build import library_path
from openlora.kernels.cpu.library import load_library
from openlora.kernels.errors import KernelsUnavailable
from openlora.node.engine.process import user_cache


def test_no_compiler_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelsUnavailable, match="no C\\+\\+ compiler"):
        library_path(tmp_path)


def test_a_compiler_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    compiler, cache = tmp_path / "bin" / "c++", tmp_path / "cache"
    compiler.parent.mkdir()
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "x.cpp:1: error: no such thing" >&2\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent), prepend=":")
    (cache / "cpu-build-killed").mkdir(parents=True)
    (cache / "cpu-build-killed/step.o").touch()
    (cache / "tmp").mkdir()  # another's
    with pytest.raises(KernelsUnavailable, match=r"error: no such thing$"):
        library_path(cache)
    assert {path.name for path in cache.iterdir()} == {"cpu.lock", "tmp"}
    assert f"event=kernels_building path={cache}" in caplog.text


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a compiler takes its own processor's instructions")
@pytest.mark.parametrize("unit", build.NEEDED_FLAGS)
def test_every_unit_compiles_whatever_the_processor(unit: str) -> None:
    source, flags = build._SOURCES / f"{unit}.cpp", build._X86_UNITS[unit]
    build._run(["c++", *build._COMMON, *flags, "-fsyntax-only", str(source)])


def test_a_library_that_cannot_be_loaded_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cpu.so").write_bytes(b"no library")
    with pytest.raises(KernelsUnavailable, match=r"cannot be loaded: .*cpu\.so"):
        load_library(tmp_path / "cpu.so")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/elsewhere"}, Path("/elsewhere/openlora")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache/openlora"),
        ({}, Path.home() / ".cache/openlora"),
    ],
)
def test_where_the_library_is_kept(environment: dict[str, str], expected: Path) -> None:
    assert user_cache(environment) == expected
