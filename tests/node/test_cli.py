import pytest

from openlora.node.catalogue import RegisteredAdapter
from openlora.node.cli.hand import parse_address
from openlora.node.cli.job import parse_price, parse_term
from openlora.node.cli.output import Output, parse_tokens, tokens
from openlora.node.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "wei"), [("0", 0), ("1", 10**18), ("0.1", 10**17), ("0.000000000000000001", 1), ("1e3", 10**21)]
)
def test_tokens_are_exact(text, wei):
    assert parse_tokens(text, "--stake") == wei
    assert parse_tokens(tokens(wei), "--stake") == wei


@pytest.mark.parametrize("text", ["", "x", "-1", "NaN", "Infinity", "1e30", "0.0000000000000000001", "1,5"])
def test_what_is_no_number_of_tokens_is_refused(text):
    with pytest.raises(ConfigError, match="--stake"):
        parse_tokens(text, "--stake")


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
    for wrong in ("pirate:", "pirate:x", "pirate:0", "pirate:11", "pirate:nan"):
        with pytest.raises(ConfigError, match="--adapter"):
            parse_term(wrong, find)


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


def test_a_strangers_text_cannot_steer_the_terminal(capsys):
    output = Output(as_json=False)
    output.table(("name",), [("\x1b[2J[bold]pirate\x07",)])
    output.say("a\x1b]0;title\x07b [red]c\nd")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]pirate" in shown
    assert "b [red]c\nd" in shown
