"""What FlashInfer's wrappers take, read from the sources in its wheel; as JSON, without installing or importing it.

    python kernels/bench/flashinfer_signatures.py > tests/kernels/flashinfer_signatures.json

The wheel is downloaded into the user's cache unless one is named.
"""

import argparse
import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

VERSION = "0.7.2"
WHEEL = f"flashinfer_python-{VERSION}-py3-none-any.whl"
WRAPPERS = {
    "BatchPrefillWithPagedKVCacheWrapper": ("flashinfer/prefill.py", ("__init__", "plan", "run")),
    "BatchDecodeWithPagedKVCacheWrapper": ("flashinfer/decode.py", ("__init__", "plan", "run")),
}
FORWARDED = {("BatchDecodeWithPagedKVCacheWrapper", "plan"): "_plan_impl"}  # where its `**kwargs` end


def signatures(wheel: Path) -> dict[str, dict[str, str]]:
    """By wrapper and method: the parameters but for self, without types, as Python writes them."""
    found: dict[str, dict[str, str]] = {}
    with zipfile.ZipFile(wheel) as archive:
        for wrapper, (path, methods) in WRAPPERS.items():
            module = ast.parse(archive.read(path))
            (made,) = [node for node in module.body if isinstance(node, ast.ClassDef) and node.name == wrapper]
            named = {name: FORWARDED.get((wrapper, name), name) for name in methods}
            found[wrapper] = {name: parameters(method(made, inner)) for name, inner in named.items()}
    return found


def method(made: ast.ClassDef, name: str) -> ast.FunctionDef:
    """The one that is not an overload."""
    functions = [node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == name]
    (one,) = [node for node in functions if not any(ast.unparse(mark) == "overload" for mark in node.decorator_list)]
    return one


def parameters(function: ast.FunctionDef) -> str:
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg):
            node.annotation = None
    return ast.unparse(function.args).removeprefix("self, ")


def downloaded(folder: Path) -> Path:
    """The wheel, 65 MB, in `folder`."""
    if not (folder / WHEEL).exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, f"flashinfer-python=={VERSION}"], check=True, timeout=600)  # noqa: S603  # pip's own
    return folder / WHEEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--wheel", type=Path)
    wheel = parser.parse_args().wheel or downloaded(Path.home() / ".cache/openlora/wheels")
    print(json.dumps({"flashinfer": VERSION, "wrappers": signatures(wheel)}, indent=2))


if __name__ == "__main__":
    main()
