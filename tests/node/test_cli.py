import contextlib
import dataclasses
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main
import typer.testing
from eth_utils.address import to_checksum_address
from typer.core import TyperCommand, TyperGroup

from openlora.contracts import Deployment, Share
from openlora.node.catalogue import RegisteredAdapter
from openlora.node.cli.datanet import digest_of, parse_share
from openlora.node.cli.hand import parse_address
from openlora.node.cli.job import parse_price, parse_term, parse_terms
from openlora.node.cli.main import app
from openlora.node.cli.model import parse_id
from openlora.node.cli.ordered import require_context
from openlora.node.cli.output import Output, parse_tokens, tokens
from openlora.node.config import KeyConfig
from openlora.node.config_files import ChainEntry, write_client_config
from openlora.node.errors import ConfigError
from tests.node.facts import OPERATOR
from tests.node.network.fake_peers import BASE_ID, FakePeers


@pytest.mark.parametrize(
    ("text", "wei"), [("0", 0), ("1", 10**18), ("0.1", 10**17), ("0.000000000000000001", 1), ("1e3", 10**21)]
)
def test_tokens_are_exact(text, wei):
    assert parse_tokens(text, "--stake") == wei
    assert parse_tokens(tokens(wei), "--stake") == wei


def test_an_answer_that_no_node_has_room_for_is_refused(tmp_path: Path):
    peers = FakePeers(tmp_path)
    peers.peer("one")  # with a context of 512
    base, other = bytes.fromhex(BASE_ID), bytes(32)
    for base_id, max_tokens in ((base, 511), (other, 9_000)):
        require_context(peers.records, base_id, max_tokens)  # it fits, or nobody is known who would know
    with pytest.raises(ConfigError, match=r"--max-tokens 512: .* give 511 at most"):
        require_context(peers.records, base, 512)


@pytest.mark.parametrize("text", ["", "x", "-1", "NaN", "Infinity", "1e30", "0.0000000000000000001", "1,5"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ConfigError, match="--stake"):
        parse_tokens(text, "--stake")


@pytest.mark.parametrize("text", ["", "0x", "zz", "0x12", "0x" + "0" * 63])
def test_what_is_no_model_id_is_refused(text):
    with pytest.raises(ConfigError, match="64 hex digits"):
        parse_id(text)


def test_a_price_is_two_numbers():
    assert parse_price("0.1:2") == (10**17, 2 * 10**18)
    for wrong in ("0.1", "a:b", "1:2:3", ":"):
        with pytest.raises(ConfigError, match="--price"):
            parse_price(wrong)


def test_a_term_is_a_name_and_a_weight():
    found = RegisteredAdapter(b"\x02" * 32, b"", "", "pirate")
    asked = []

    def find(name: str) -> RegisteredAdapter:
        asked.append(name)
        return found

    assert parse_term("pirate", find).weight == 1.0
    assert parse_term("pirate:-0.7", find).weight == -0.7
    assert parse_term("bafyroot:2", find).digest == found.digest
    assert asked == ["pirate", "pirate", "bafyroot"]
    for wrong in ("pirate:", "pirate:x", "pirate:0", "pirate:11", "pirate:nan", "pirate:0.00004"):
        with pytest.raises(ConfigError, match="--adapter"):
            parse_term(wrong, find)
    with pytest.raises(ConfigError, match="twice"):
        parse_terms(["pirate:0.7", "bafyroot"], find)


def test_a_share_is_an_address_and_a_percentage():
    assert parse_share(f"{OPERATOR}:12.5") == Share(payee=OPERATOR, bps=1_250)
    for wrong in (OPERATOR, f"{OPERATOR}:", f"{OPERATOR}:0", f"{OPERATOR}:101", f"{OPERATOR}:0.001", f"{OPERATOR}:nan"):
        with pytest.raises(ConfigError, match="--share"):
            parse_share(wrong)
    with pytest.raises(ConfigError, match="no address"):
        parse_share("me:100")


def test_a_datanets_texts_are_what_adapters_are_trained_on(tmp_path: Path):
    text = tmp_path / "texts.jsonl"
    good = '{"question": "Ahoy?", "answer": "Aye!\u2028Aye!", "source": "sea"}\n'.encode()
    text.write_bytes(good * 3)
    assert digest_of(text) == sha256(good * 3).digest()
    for line in (b"Ahoy?\n", b"\n", b"[]", b'{"question": "Ahoy?"}', good[:-2], b"\xff\n", b" " * 2**20 + good):
        text.write_bytes(good + line)
        with pytest.raises(ConfigError, match=rf"line 2 of {text} is not one .*correct it"):
            digest_of(text)
    with pytest.raises(ConfigError, match="/dev/null is empty"):
        digest_of(Path("/dev/null"))
    with pytest.raises(ConfigError, match="line 1 of /dev/zero"):
        digest_of(Path("/dev/zero"))


def test_an_empty_prompt_costs_nothing(tmp_path: Path):
    done = typer.testing.CliRunner().invoke(app, ["job", "submit", " ", "--client", str(tmp_path / "none")])
    assert isinstance(done.exception, ConfigError)
    assert "the prompt is empty" in str(done.exception)


def test_a_mistyped_address_is_noticed():
    right = "0x70997970C51812dc3A010C7d01b50e0d17dc79C8"
    assert parse_address(right) == parse_address(right.lower()) == right
    for wrong in (right[:-1] + "9", "0x" + right[2:].swapcase(), "0x12", "me"):
        with pytest.raises(ConfigError, match="address"):
            parse_address(wrong)


def test_a_table_never_cuts_what_people_copy(capsys):
    cid = "bafybei" + "a" * 120
    Output(as_json=False).table(("name", "cid"), [("pirate", cid)])
    assert cid in capsys.readouterr().out


def test_json_is_the_only_thing_printed_and_bytes_are_hex(capsys):
    output = Output(as_json=True)
    output.say("hello")
    output.table(("a",), [("b",)])
    output.result({"digest": b"\x01\x02"})
    assert capsys.readouterr().out == '{"digest": "0x0102"}\n'


def test_json_has_amounts_as_text_and_loses_no_digit_of_them(capsys):
    wei = 12_345_678_901_234_567_890
    documents = [{"earned_wei": {"node": wei}, "fee_wei": None, "block": 7, "transactions": [{"cost_wei": wei}]}]
    Output(as_json=True).result(documents)
    (shown,) = json.loads(capsys.readouterr().out)
    text = str(wei)
    assert shown == {"earned_wei": {"node": text}, "fee_wei": None, "block": 7, "transactions": [{"cost_wei": text}]}


def test_a_strangers_text_cannot_steer_the_terminal(capsys):
    output = Output(as_json=False)
    output.table(("name",), [("\x1b[2J[bold]pirate\x07",)])
    output.say("a\x1b]0;title\x07b [red]c\nd")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]pirate" in shown
    assert "b [red]c\nd" in shown


def verbs(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Each with its flags."""
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*path, name))
    else:
        assert isinstance(command, TyperCommand)
        yield " ".join(path), {flag for parameter in command.params for flag in parameter.opts}


def test_every_verb_that_ends_by_itself_prints_json_if_asked():
    found = dict(verbs(typer.main.get_command(app)))
    assert len(found) > 30
    assert {verb for verb, flags in found.items() if "--json" not in flags} == {"run", "serve"}


def test_the_program_says_which_version_it_is():
    done = typer.testing.CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"openlora {version('openlora')}\n")


def test_what_a_verb_does_not_need_is_not_imported_for_it():
    """Each TAB of a shell starts the program."""
    heavy = ("torch", "fastapi", "uvicorn", "web3", "eth_abi", "eth_utils", "gguf", "numpy", "httpx", "libp2p")
    code = f"import sys, openlora.node.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_refusal_that_quotes_a_file_cannot_steer_the_terminal(tmp_path: Path):
    (tmp_path / "client.toml").write_text('"\\u001b[2J" = 1')
    words = ["adapter", "list", "--client", str(tmp_path / "client.toml")]
    done = subprocess.run([sys.executable, "-m", "openlora.node", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown key" in done.stderr
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_path_that_leads_round_in_circles_is_a_sentence(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    at = to_checksum_address("0x" + "11" * 20)
    named = {field.name: 1 if field.name in ("chain_id", "block") else at for field in dataclasses.fields(Deployment)}
    (tmp_path / "deployment.json").write_text(json.dumps(named))
    words = ["account", "--state", "loop/x", "--rpc", "http://127.0.0.1:9", "--chain-id", "1"]
    command = [sys.executable, "-m", "openlora.node", *words, "--deployment", "deployment.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "Too many levels of symbolic links; name another path" in done.stderr


INTERRUPTED = """
import runpy, sys
class Ctrl_C:
    def find_spec(self, name, path=None, target=None):
        if name == "openlora.node.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Ctrl_C())
runpy.run_module("openlora.node", run_name="__main__")
"""


def test_ctrl_c_while_the_program_is_being_read_is_no_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_full_disk_is_a_sentence_and_may_pass():
    command = [sys.executable, "-m", "openlora.node", "upgrade", "--check", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert "openlora: the disk: No space left on device; free disk space\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (("init", "--state", "node"), b"(--rpc)"),
        (("stake", "1", "--client", "client.toml", "--operator-keystore", "key.json"), b"password of key.json"),
    ],
)
def test_ctrl_c_at_a_question_ends_the_command(words: tuple[str, ...], prompt: bytes, tmp_path: Path):
    key = KeyConfig(keystore=tmp_path / "key.json", password_file=tmp_path / "key.password")
    chain = ChainEntry(1, "http://127.0.0.1:1", tmp_path / "deployment.json")
    write_client_config(tmp_path / "client.toml", chain, key=key, content_dir=tmp_path / "content")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "openlora.node", *words]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        shown = b""
        while prompt not in shown:
            shown += os.read(ours, 4096)
        for _ in range(30):  # one that comes between the question and the reading of its answer is kept until then
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=1)
                break
        process.kill()
    assert process.returncode == 130
    os.close(ours)
    assert not (tmp_path / "node").exists()
