import json
import stat
import time

import pytest
from eth_account import Account

from openlora.node.config import KeyConfig
from openlora.node.doctor.keys import written_address
from openlora.node.errors import ConfigError
from openlora.node.keys import create_key, load_key


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    config, address = create_key(folder, "hot")
    return config, address


def test_a_key_opens_with_its_password_and_is_the_owners_alone(made):
    config, address = made
    assert load_key(config).address == address
    for path in (config.keystore, config.password_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(config.keystore.read_text())["crypto"]["kdfparams"]["n"] >= 262_144


def test_a_key_is_never_overwritten(made):
    config, _ = made
    with pytest.raises(ConfigError, match="exists already"):
        create_key(config.keystore.parent, "hot")


def test_a_wrong_password_is_one_sentence_without_the_password(made, tmp_path):
    wrong = tmp_path / "wrong.password"
    wrong.write_text("hunter2\n")
    with pytest.raises(ConfigError, match="does not open") as caught:
        load_key(KeyConfig(keystore=made[0].keystore, password_file=wrong))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 3}', '{"crypto": {}, "version": 3}', "not json"])
def test_what_is_no_keystore_is_said_so(tmp_path, text):
    keystore, password = tmp_path / "k.json", tmp_path / "p"
    keystore.write_text(text)
    password.write_text("x")
    with pytest.raises(ConfigError, match=r"keystore"):
        load_key(KeyConfig(keystore=keystore, password_file=password))


@pytest.mark.parametrize(
    "changes",
    [
        *({"n": n} for n in (0, 1, 1 << 40, 10**30, 2.0, "2")),
        *({"r": r} for r in (0, 1 << 30)),
        {"n": 1 << 20, "r": 32},
        {"p": 1 << 20},
        *({"dklen": size} for size in (0, 31, 1 << 40)),
        {"salt": 3},
        {"c": 10**12},
        {"prf": "crc-32"},
    ],
    ids=str,
)
def test_no_keystore_asks_for_more_than_a_person_waits_for(made, tmp_path, changes):
    document = json.loads(made[0].keystore.read_text())
    document["crypto"]["kdfparams"] |= changes
    keystore = tmp_path / "k.json"
    keystore.write_text(json.dumps(document))
    started = time.process_time()
    with pytest.raises(ConfigError, match="is not a keystore v3 file"):
        load_key(KeyConfig(keystore=keystore, password_file=made[0].password_file))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("content", ["[" * 5_000, b"\xff", bytes(2 << 20)], ids=["deep", "no text", "large"])
def test_what_cannot_be_read_as_a_keystore_is_said_so(made, tmp_path, content):
    keystore = tmp_path / "k.json"
    keystore.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match="cannot be read as a keystore"):
        load_key(KeyConfig(keystore=keystore, password_file=made[0].password_file))
    assert written_address(keystore) is None


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_key(KeyConfig(keystore=tmp_path / "nowhere.json", password_file=tmp_path / "p"))


def test_a_given_key_is_kept(tmp_path):
    key = Account.create().key
    config, address = create_key(tmp_path, "given", bytes(key))
    assert address == Account.from_key(key).address == load_key(config).address
