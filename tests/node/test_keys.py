import json
import stat

import pytest
from eth_account import Account

from openlora.node.config import KeyConfig
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


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        load_key(KeyConfig(keystore=tmp_path / "nowhere.json", password_file=tmp_path / "p"))


def test_a_given_key_is_kept(tmp_path):
    key = Account.create().key
    config, address = create_key(tmp_path, "given", bytes(key))
    assert address == Account.from_key(key).address == load_key(config).address
