"""The seeded faults still have a place in the sources; whether the tests notice them takes script/mutants.py itself."""

import runpy
from pathlib import Path

CONTRACTS = Path(__file__).parents[2] / "contracts"


def test_every_mutant_changes_exactly_one_place() -> None:
    script = runpy.run_path(str(CONTRACTS / "script" / "mutants.py"))
    for mutant in script["MUTANTS"]:
        assert script["mutated"](mutant, CONTRACTS / "src") != (CONTRACTS / "src" / mutant.file).read_text(), (
            mutant.name
        )


def test_every_mistake_names_a_test_that_is_there() -> None:
    script = runpy.run_path(str(CONTRACTS / "script" / "mutants.py"))
    tests = "".join(path.read_text(encoding="utf-8") for path in (CONTRACTS / "test").glob("*.t.sol"))
    for mutant in script["MISTAKES"]:
        assert f"function {mutant.test}" in tests, mutant.name
