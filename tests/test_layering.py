"""Who may import whom, read from the sources: every import statement, at any depth, and `import_module` of a literal.

- `openlora.kernels`, `openlora.p2p` and `openlora.contracts` import neither each other nor `openlora.node`.
- `openlora` stays a namespace: no `openlora/__init__.py`.
- Starting the agent does not import torch, directly or through a module of ours.
"""

import ast
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

PARTS = ("node", "kernels", "p2p", "contracts")
LIBRARIES = ("kernels", "p2p", "contracts")
NOT_OURS = frozenset({"node_modules", "lib", "out", "cache", "__pycache__"})
COMPUTES = ("openlora.kernels", "openlora.node.engine")  # these may import torch …
TORCH_FREE = frozenset(  # … but for the engine's face to the agent
    f"openlora.node.engine.{name}"
    for name in ("messages", "client", "connection", "text", "supervisor", "process", "choice")
)


@dataclass(frozen=True, slots=True)
class Import:
    """`target` is absolute. `eager`: it happens when the module is imported, not when a function is called."""

    target: str
    line: int
    eager: bool


@dataclass(frozen=True, slots=True)
class Module:
    name: str  # dotted, as imported
    path: Path
    part: str  # the top folder it lies in
    imports: tuple[Import, ...]


# ---- reading --------------------------------------------------------------------------------------------------------


class ImportReader(ast.NodeVisitor):
    """Collects the imports of one module of `package`."""

    def __init__(self, package: str) -> None:
        self.found: list[Import] = []
        self._package = package
        self._eager = True
        self._loaders = {"import_module", "__import__"}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = self._absolute("." * node.level + (node.module or ""))
        self._add(source, node)
        for alias in node.names:
            self._add(f"{source}.{alias.name}", node)  # the name may be a module itself
            if alias.name == "import_module":
                self._loaders.add(alias.asname or alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        match node.args:
            case [ast.Constant(value=str(name)), *_] if called in self._loaders:
                self._add(self._absolute(name), node)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        typing_only = ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        self._visit_body(node.body, eager=self._eager and not typing_only)
        self._visit_body([node.test, *node.orelse], eager=self._eager)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_body([*node.decorator_list, node.args], eager=self._eager)
        self._visit_body(node.body, eager=False)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_body([node.body], eager=False)

    def _visit_body(self, nodes: Sequence[ast.AST], *, eager: bool) -> None:
        outer, self._eager = self._eager, eager
        for node in nodes:
            self.visit(node)
        self._eager = outer

    def _absolute(self, name: str) -> str:
        return importlib.util.resolve_name(name, self._package)

    def _add(self, target: str, node: ast.stmt | ast.expr) -> None:
        self.found.append(Import(target, node.lineno, self._eager))


def read_modules(root: Path) -> dict[str, Module]:
    """Every Python file of the four parts, by module name."""
    modules = [read_module(root, part, path) for part in PARTS for path in sources(root / part)]
    return {module.name: module for module in modules}


def sources(folder: Path) -> Iterator[Path]:
    """In none of NOT_OURS, where other tests' compilers write and delete while this one walks."""
    for ours in sorted(set(folder.glob("*")) - {folder / name for name in NOT_OURS}):
        yield from sorted(path for path in (ours, *ours.rglob("*.py")) if path.suffix == ".py")


def read_module(root: Path, part: str, path: Path) -> Module:
    dotted = path.relative_to(root / part).with_suffix("").parts
    if dotted[0] != "openlora":
        dotted = (part, *dotted)  # node/bench/x.py is no portion of the namespace
    is_package = dotted[-1] == "__init__"
    name = ".".join(dotted[:-1] if is_package else dotted)
    reader = ImportReader(name if is_package else ".".join(dotted[:-1]))
    reader.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return Module(name, path.relative_to(root), part, tuple(reader.found))


# ---- judging --------------------------------------------------------------------------------------------------------


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def crossings(modules: dict[str, Module]) -> list[str]:
    """Imports by which a library reaches another part."""
    found = []
    for module in modules.values():
        others = [f"openlora.{part}" for part in PARTS if part != module.part]
        if module.part in LIBRARIES:
            hits = {(i.line, other) for i in module.imports for other in others if within(i.target, other)}
            found += [f"{module.path}:{line} imports {other}" for line, other in sorted(hits)]
    return found


def eager_torch(modules: dict[str, Module]) -> list[str]:
    """The import chains by which a module that must start without torch brings it in, one a module."""
    return [
        " → ".join(chain)
        for name in sorted(modules)
        if starts_light(name) and (chain := chain_to("torch", name, modules))
    ]


def starts_light(name: str) -> bool:
    computes = any(within(name, package) for package in COMPUTES)
    return within(name, "openlora") and (not computes or name in TORCH_FREE)


def chain_to(package: str, start: str, modules: dict[str, Module]) -> list[str]:
    """Breadth first over eager imports; importing a.b.c runs a and a.b too. Empty: the package is not reached."""
    chains, seen = [[start]], {start}
    for chain in chains:
        for imported in (i.target for i in modules[chain[-1]].imports if i.eager):
            if within(imported, package):
                return [*chain, package]
            parts = imported.split(".")
            for name in (".".join(parts[:length]) for length in range(1, len(parts) + 1)):
                if name in modules and name not in seen:
                    seen.add(name)
                    chains.append([*chain, name])
    return []


def namespace_breakers(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for part in PARTS for path in (root / part).glob("openlora/__init__.py*")]


# ---- this repository ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def our_modules(repository: Path) -> dict[str, Module]:
    return read_modules(repository)


def test_the_walk_sees_every_part(our_modules: dict[str, Module]) -> None:
    assert {module.part for module in our_modules.values()} == set(PARTS)
    assert "openlora.node.engine.messages" in our_modules


def test_the_libraries_import_neither_each_other_nor_the_node(our_modules: dict[str, Module]) -> None:
    assert crossings(our_modules) == []


def test_the_agent_starts_without_torch(our_modules: dict[str, Module]) -> None:
    assert eager_torch(our_modules) == []


@pytest.mark.parametrize("package", ["eth_utils", "eth_account", "web3", "libp2p", "fastapi", "typer"])
def test_vllms_process_starts_without_what_its_environment_lacks(our_modules: dict[str, Module], package: str) -> None:
    assert chain_to(package, "openlora.node.engine.vllm.__main__", our_modules) == []


def test_openlora_is_a_namespace(repository: Path) -> None:
    assert namespace_breakers(repository) == []


# ---- the checker can fail -------------------------------------------------------------------------------------------


def tree(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_modules(root)


@pytest.mark.parametrize(
    ("path", "text", "reached"),
    [
        ("kernels/openlora/kernels/x.py", "import openlora.node.errors", "openlora.node"),
        ("kernels/openlora/kernels/x.py", "from openlora import p2p", "openlora.p2p"),
        ("kernels/openlora/kernels/x.py", "from ..contracts import abi", "openlora.contracts"),
        ("kernels/openlora/kernels/__init__.py", "from ..p2p import host", "openlora.p2p"),
        ("p2p/openlora/p2p/x.py", "async def f():\n    import openlora.node", "openlora.node"),
        ("p2p/openlora/p2p/x.py", "class C:\n    def f(self): from openlora.kernels import ops", "openlora.kernels"),
        ("contracts/openlora/contracts/x.py", "try:\n    import openlora.p2p\nexcept ImportError: ...", "openlora.p2p"),
        ("contracts/openlora/contracts/x.py", "if TYPE_CHECKING:\n    import openlora.node", "openlora.node"),
        ("p2p/openlora/p2p/x.py", "f = lambda: importlib.import_module('openlora.node.job')", "openlora.node"),
        ("p2p/openlora/p2p/x.py", "from importlib import import_module as i\ni('openlora.node')", "openlora.node"),
        ("p2p/openlora/p2p/x.py", "import_module('..node.job', __package__)", "openlora.node"),
        ("p2p/openlora/p2p/x.py", "__import__('openlora.kernels')", "openlora.kernels"),
        ("kernels/bench/x.py", "from openlora.node.engine import loader", "openlora.node"),
    ],
)
def test_a_crossing_is_found(tmp_path: Path, path: str, text: str, reached: str) -> None:
    modules = tree(tmp_path, {path: text})
    assert [finding.split(" imports ")[1] for finding in crossings(modules)] == [reached]
    assert crossings(modules)[0].startswith(f"{path}:")


def test_what_a_library_may_import(tmp_path: Path) -> None:
    text = "import torch\nfrom openlora.p2p import host\nfrom . import errors\nfrom openlora.p2p_tools import x"
    assert crossings(tree(tmp_path, {"p2p/openlora/p2p/x.py": text})) == []


def test_the_node_may_import_every_library(tmp_path: Path) -> None:
    text = "import openlora.kernels, openlora.p2p, openlora.contracts"
    assert crossings(tree(tmp_path, {"node/openlora/node/x.py": text})) == []


@pytest.mark.parametrize(
    ("files", "chains"),
    [
        ({"node/openlora/node/job.py": "import torch"}, ["openlora.node.job → torch"]),
        ({"p2p/openlora/p2p/x.py": "class C:\n    from torch import nn"}, ["openlora.p2p.x → torch"]),
        ({"node/openlora/node/engine/client.py": "import torch.cuda"}, ["openlora.node.engine.client → torch"]),
        (
            {
                "node/openlora/node/a.py": "from openlora.node.engine import runner",
                "node/openlora/node/engine/runner.py": "import torch",
            },
            ["openlora.node.a → openlora.node.engine.runner → torch"],
        ),
        (
            {
                "node/openlora/node/a.py": "import openlora.kernels.types",
                "kernels/openlora/kernels/__init__.py": "from openlora.kernels import ops",
                "kernels/openlora/kernels/ops.py": "import torch",
                "kernels/openlora/kernels/types.py": "",
            },
            ["openlora.node.a → openlora.kernels → openlora.kernels.ops → torch"],
        ),
    ],
)
def test_eager_torch_is_found(tmp_path: Path, files: dict[str, str], chains: list[str]) -> None:
    assert eager_torch(tree(tmp_path, files)) == chains


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("node/openlora/node/engine/runner.py", "import torch"),
        ("kernels/openlora/kernels/ops.py", "import torch"),
        ("node/openlora/node/job.py", "def f():\n    import torch"),
        ("node/openlora/node/job.py", "if TYPE_CHECKING:\n    import torch"),
        ("node/openlora/node/job.py", "import torchless"),
        ("node/bench/x.py", "import torch"),
    ],
)
def test_torch_where_it_is_allowed(tmp_path: Path, path: str, text: str) -> None:
    assert eager_torch(tree(tmp_path, {path: text})) == []


def test_an_init_file_in_the_namespace_is_found(tmp_path: Path) -> None:
    tree(tmp_path, {"p2p/openlora/__init__.py": ""})
    assert namespace_breakers(tmp_path) == ["p2p/openlora/__init__.py"]
