"""Writes contracts/openlora/contracts/bindings/*.py from the committed artefacts and the interfaces' enums.

One module a contract: its structs and events as frozen dataclasses, its functions as methods that return a `Call`, its
custom errors as a table. A type belongs to the module of the interface that declares it and is imported elsewhere.
Formatting is `ruff format`'s. Run it after export.py; a test holds that its output is what is committed.
"""

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eth_utils.crypto import keccak

Abi = dict[str, Any]

CONTRACTS = Path(__file__).resolve().parent.parent
PACKAGE = CONTRACTS / "openlora" / "contracts"
INTERFACES = CONTRACTS / "src" / "interfaces"
MODULES = {
    "Vault": "vault",
    "NodeRegistry": "node_registry",
    "AdapterRegistry": "adapter_registry",
    "DevToken": "token",
    "JobQueue": "job_queue",
    "Sessions": "sessions",
    "Outputs": "outputs",
    "Disputes": "disputes",
    "Governance": "governance",
}
RENAMED = {
    ("IJobQueue", "State"): "JobState",
    ("ISessions", "State"): "SessionState",
    ("IOutputs", "Kind"): "QuestionKind",
}
RESERVED = {"from": "from_", "id": "id_", "data": "calldata"}  # "data" is what a method calls its own encoding
WIDTH = 120


def snake(name: str) -> str:
    """jobId → job_id; trailing and leading underscores of Solidity names go."""
    spaced = re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", name.strip("_"))
    return RESERVED.get(spaced.lower(), spaced.lower())


def canonical(parameter: Abi) -> str:
    """The type as it stands in signatures: tuples spelled out."""
    kind: str = parameter["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(canonical(component) for component in parameter["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def signature(entry: Abi) -> str:
    return f"{entry['name']}({','.join(canonical(p) for p in entry['inputs'])})"


def base(parameter: Abi) -> Abi:
    """An array's element."""
    return parameter | {
        "type": parameter["type"].removesuffix("[]"),
        "internalType": parameter["internalType"].removesuffix("[]"),
    }


def is_array(parameter: Abi) -> bool:
    return bool(parameter["type"].endswith("[]"))


def declared(parameter: Abi) -> tuple[str, str] | None:
    """(interface, Python name) of a struct or an enum; None for other types."""
    match = re.match(r"(?:struct|enum) (?:(\w+)\.)?(\w+)", parameter.get("internalType", ""))
    return None if match is None else (match[1] or "", RENAMED.get((match[1], match[2]), match[2]))


def is_enum(parameter: Abi) -> bool:
    return bool(parameter.get("internalType", "").startswith("enum "))


@dataclass
class Module:
    """One binding module while it is being written."""

    contract: str
    imports: dict[str, set[str]] = field(default_factory=dict)

    def need(self, module: str, name: str) -> str:
        self.imports.setdefault(module, set()).add(name)
        return name

    def owned(self, parameter: Abi) -> str:
        """The Python name of a struct or enum, imported if another module declares it."""
        interface, name = declared(parameter) or ("", "")
        home = interface.removeprefix("I")
        if home != self.contract:
            self.need(f"openlora.contracts.bindings.{MODULES[home]}", name)
        return name

    def python_type(self, parameter: Abi, *, argument: bool) -> str:
        if is_array(parameter):
            element = self.python_type(base(parameter), argument=argument)
            return f"{self.need('collections.abc', 'Sequence')}[{element}]" if argument else f"tuple[{element}, ...]"
        if declared(parameter):
            return self.owned(parameter)
        kind = parameter["type"]
        if kind == "address":
            return self.need("eth_typing", "ChecksumAddress")
        plain = {"bool": "bool", "string": "str"}.get(kind)
        return plain or ("bytes" if kind.startswith("bytes") else "int")

    def abi_type(self, parameter: Abi) -> str:
        """A Python expression for the ABI type string."""
        if parameter["type"].startswith("tuple"):
            name = self.owned(parameter)
            return f'f"{{{name}.ABI}}[]"' if is_array(parameter) else f"{name}.ABI"
        return f'"{parameter["type"]}"'

    def to_abi(self, parameter: Abi, value: str) -> str:
        if not parameter["type"].startswith("tuple"):
            return value
        return f"[item.to_abi() for item in {value}]" if is_array(parameter) else f"{value}.to_abi()"

    def from_abi(self, parameter: Abi, value: str) -> str:
        """A Python expression that turns eth_abi's value into ours."""
        if is_array(parameter):
            element = self.from_abi(base(parameter), "item")
            return f"tuple({value})" if element == "item" else f"tuple({element} for item in {value})"
        if declared(parameter):
            return f"{self.owned(parameter)}{'' if is_enum(parameter) else '.from_abi'}({value})"
        if parameter["type"] == "address":
            return f"{self.need('eth_utils.address', 'to_checksum_address')}({value})"
        return value

    # Declarations

    def enum(self, name: str, members: list[str]) -> str:
        self.need("enum", "IntEnum")
        body = "\n".join(f"    {snake(member).upper()} = {value}" for value, member in enumerate(members))
        return f"class {name}(IntEnum):\n{body}\n"

    def struct(self, parameter: Abi) -> str:
        name = self.owned(parameter)
        self.need_dataclass()
        components = parameter["components"]
        fields = [f"    {snake(c['name'])}: {self.python_type(c, argument=False)}" for c in components]
        outward = ", ".join(self.to_abi(c, f"self.{snake(c['name'])}") for c in components)
        inward = ", ".join(f"{snake(c['name'])}={self.from_abi(c, f'values[{i}]')}" for i, c in enumerate(components))
        self.need("typing", "Any")
        return "\n".join(
            [
                "@dataclass(frozen=True, slots=True)",
                f"class {name}:",
                f'    ABI: ClassVar[str] = "{canonical(parameter)}"',
                "",
                *fields,
                "",
                "    def to_abi(self) -> tuple[Any, ...]:",
                f"        return ({outward},)",
                "",
                "    @classmethod",
                f'    def from_abi(cls, values: tuple[Any, ...]) -> "{name}":',
                f"        return cls({inward})",
                "",
            ]
        )

    def event(self, entry: Abi) -> str:
        self.need_dataclass()
        self.need("collections.abc", "Sequence")
        inputs = entry["inputs"]
        indexed = [p for p in inputs if p["indexed"]]
        plain = [p for p in inputs if not p["indexed"]]
        self.need("openlora.contracts.call", "decode_topics")
        if plain:
            self.need("openlora.contracts.call", "decode_values")
        fields = [f"    {snake(p['name'])}: {self.python_type(p, argument=False)}" for p in inputs]
        types = ", ".join(self.abi_type(p) for p in indexed)
        reads = [f"        {'indexed = ' if indexed else ''}decode_topics([{types}], topics)"]
        if plain:
            types = ", ".join(self.abi_type(p) for p in plain)
            reads.append(f"        plain = decode_values([{types}], data)")
        values = ", ".join(
            f"{snake(p['name'])}="
            + self.from_abi(p, f"indexed[{indexed.index(p)}]" if p["indexed"] else f"plain[{plain.index(p)}]")
            for p in inputs
        )
        topic = keccak(text=signature(entry)).hex()
        return "\n".join(
            [
                "@dataclass(frozen=True, slots=True)",
                f"class {entry['name']}:",
                f'    TOPIC: ClassVar[bytes] = bytes.fromhex("{topic}")',
                "",
                *fields,
                "",
                "    @classmethod",
                f'    def from_log(cls, topics: Sequence[bytes], data: bytes) -> "{entry["name"]}":',
                *reads,
                f"        return cls({values})",
                "",
            ]
        )

    def method(self, entry: Abi, notice: str | None) -> str:
        self.need("openlora.contracts.call", "Call")
        self.need("openlora.contracts.call", "encode_call")
        arguments = [(snake(p["name"]), p) for p in entry["inputs"]]
        parameters = "".join(f", {name}: {self.python_type(p, argument=True)}" for name, p in arguments)
        returned, decoder = self._decoder(entry["outputs"])
        selector = keccak(text=signature(entry))[:4].hex()
        types = ", ".join(self.abi_type(p) for _, p in arguments)
        values = ", ".join(self.to_abi(p, name) for name, p in arguments)
        lines = [f"    def {snake(entry['name'])}(self{parameters}) -> Call[{returned}]:"]
        if notice:
            lines.append(docstring(notice))
        lines += [
            f'        data = encode_call(bytes.fromhex("{selector}"), [{types}], [{values}])',
            f'        return Call(self.address, data, "{self.contract}.{entry["name"]}", {decoder})',
            "",
        ]
        return "\n".join(lines)

    def _decoder(self, outputs: list[Abi]) -> tuple[str, str]:
        """(Python type, expression of the decoding function) of a function's results."""
        if not outputs:
            return "None", self.need("openlora.contracts.call", "decode_nothing")
        if len(outputs) == 1:
            self.need("openlora.contracts.call", "decode_one")
            value = f"decode_one({self.abi_type(outputs[0])}, output)"
            return self.python_type(outputs[0], argument=False), f"lambda output: {self.from_abi(outputs[0], value)}"
        self.need("openlora.contracts.call", "decode_values")
        kinds = ", ".join(self.python_type(p, argument=False) for p in outputs)
        types = ", ".join(self.abi_type(p) for p in outputs)
        return f"tuple[{kinds}]", f"lambda output: decode_values([{types}], output)"  # in eth_abi's own types

    def errors(self, entries: list[Abi]) -> str:
        self.need("openlora.contracts.call", "ErrorType")
        rows = []
        for entry in entries:
            fields = "".join(f'"{snake(p["name"])}", ' for p in entry["inputs"])
            types = "".join(f'"{canonical(p)}", ' for p in entry["inputs"])
            selector = keccak(text=signature(entry))[:4].hex()
            rows.append(f'    ErrorType("{entry["name"]}", bytes.fromhex("{selector}"), ({fields}), ({types})),')
        return "ERRORS = (\n" + "\n".join(rows) + "\n)\n"

    def need_dataclass(self) -> None:
        self.need("dataclasses", "dataclass")
        self.need("typing", "ClassVar")


def docstring(notice: str) -> str:
    text = f'"""{notice}"""'
    if len(text) + 8 <= WIDTH:
        return f"        {text}"
    wrapped = textwrap.wrap(f'"""{notice}', WIDTH - 8)
    return "\n".join(f"        {line}" for line in [*wrapped, '"""'])


def walk_structs(parameters: list[Abi], found: dict[str, Abi]) -> None:
    """Every struct reachable from `parameters`, innermost first."""
    for parameter in parameters:
        if not parameter["type"].startswith("tuple"):
            continue
        walk_structs(parameter["components"], found)
        element = base(parameter) if is_array(parameter) else parameter
        found.setdefault((declared(element) or ("", ""))[1], element)


def enums_of(contract: str) -> dict[str, list[str]]:
    """The enums an interface declares: the ABI names them but does not list their members."""
    path = INTERFACES / f"I{contract}.sol"
    source = re.sub(r"//.*", "", path.read_text(encoding="utf-8")) if path.exists() else ""
    return {
        RENAMED.get((f"I{contract}", name), name): [member.strip() for member in body.split(",") if member.strip()]
        for name, body in re.findall(r"enum (\w+) \{([^}]*)\}", source)
    }


def write_module(contract: str, seen_events: dict[str, str]) -> str:
    document = json.loads((PACKAGE / "artifacts" / f"{contract}.json").read_text(encoding="utf-8"))
    entries = sorted(document["abi"], key=lambda entry: (entry["type"], entry.get("name", "")))
    functions = [e for e in entries if e["type"] == "function"]
    events = [e for e in entries if e["type"] == "event"]
    module = Module(contract)
    structs: dict[str, Abi] = {}
    for entry in [*functions, *events]:
        walk_structs(entry["inputs"] + entry.get("outputs", []), structs)
    mine = [s for s in structs.values() if (declared(s) or ("", ""))[0].removeprefix("I") == contract]

    parts = [module.enum(name, members) for name, members in enums_of(contract).items()]
    parts += [module.struct(parameter) for parameter in mine]
    names = []
    for entry in events:
        names.append(entry["name"])
        home = seen_events.setdefault(signature(entry), contract)
        if home == contract:
            parts.append(module.event(entry))
        else:
            module.need(f"openlora.contracts.bindings.{MODULES[home]}", entry["name"])
    module.need_dataclass()
    module.need("eth_typing", "ChecksumAddress")
    methods = "\n".join(module.method(entry, document["notices"].get(signature(entry))) for entry in functions)
    parts.append(
        f'@dataclass(frozen=True, slots=True)\nclass {contract}:\n    """The contract at `address`."""\n\n'
        f"    address: ChecksumAddress\n\n{methods}"
    )
    parts.append(f"EVENTS = ({', '.join(names)},)\n")
    parts.append(module.errors([e for e in entries if e["type"] == "error"]))
    return render(f"{contract}: its calls, events and errors.", module.imports, parts)


def write_index(seen_events: dict[str, str]) -> str:
    """bindings/__init__.py: every event as one union, and the table by topic."""
    imports = {"collections.abc": {"Sequence"}}
    for event, contract in seen_events.items():
        imports.setdefault(f"openlora.contracts.bindings.{MODULES[contract]}", set()).add(event.partition("(")[0])
    names = sorted(event.partition("(")[0] for event in seen_events)
    parts = [
        f"Event = {' | '.join(names)}\n",
        "_BY_TOPIC: dict[bytes, type[Event]] = {\n" + "".join(f"    {name}.TOPIC: {name},\n" for name in names) + "}\n",
        "\n".join(
            [
                "def decode_log(topics: Sequence[bytes], data: bytes) -> Event | None:",
                '    """The event of a log of one of the market\'s contracts; None when topic 0 is none of ours.',
                "",
                "    Raises AbiMismatch when the topic is ours and the rest is not.",
                '    """',
                "    kind = _BY_TOPIC.get(bytes(topics[0])) if topics else None",
                "    return None if kind is None else kind.from_log(topics, data)",
                "",
            ]
        ),
    ]
    return render("Typed bindings of the market's contracts.", imports, parts)


def render(title: str, imports: dict[str, set[str]], parts: list[str]) -> str:
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])  # standard library, eth_*, ours
    for module, names in sorted(imports.items()):
        place = 2 if module.startswith("openlora") else 1 if module.startswith("eth_") else 0
        groups[place].append(f"from {module} import {', '.join(sorted(names, key=import_order))}")
    header = "\n\n".join("\n".join(group) for group in groups if group)
    return formatted(
        "\n\n".join([f'"""{title}\n\nGenerated by contracts/script/bind.py; do not edit.\n"""', header, *parts])
    )


def import_order(name: str) -> tuple[int, str]:
    """Ruff's: constants, classes, functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name.lower())


def formatted(source: str) -> str:
    command = [sys.executable, "-m", "ruff", "format", "--line-length", str(WIDTH), "--isolated", "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    return result.stdout


def generate() -> dict[str, str]:
    """File name → text of every binding module."""
    seen_events: dict[str, str] = {}
    files = {f"{module}.py": write_module(contract, seen_events) for contract, module in MODULES.items()}
    return {"__init__.py": write_index(seen_events), **files}


def main() -> None:
    folder = PACKAGE / "bindings"
    folder.mkdir(exist_ok=True)
    for name, text in generate().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
