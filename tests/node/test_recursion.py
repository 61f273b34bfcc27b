import json
import subprocess
import sys
import textwrap

import pytest

from openlora.node.recursion import LIMIT


def test_nested_input_raises_in_every_process_of_ours():
    assert sys.getrecursionlimit() == LIMIT
    with pytest.raises(RecursionError):
        json.loads("[" * 1_000_000)


def test_a_wallet_imported_later_does_not_raise_the_limit_again():
    program = """
        import sys
        from openlora.node.recursion import LIMIT, restore_recursion_limit
        restore_recursion_limit()
        import eth_account, web3
        assert sys.getrecursionlimit() == LIMIT, sys.getrecursionlimit()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
