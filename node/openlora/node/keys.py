"""Keystores: keystore v3 files, unlocked by a password that comes from a file, never from a flag or the environment."""

import json
import secrets
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount

from openlora.node.config import KeyConfig
from openlora.node.errors import ConfigError

SCRYPT_N = 1 << 18  # the cost of one guess


def load_key(config: KeyConfig) -> LocalAccount:
    """Unlocks a keystore. Raises ConfigError for a missing or malformed file and for a wrong password."""
    try:
        keystore = json.loads(config.keystore.read_text())
        password = config.password_file.read_text().rstrip("\r\n")
    except FileNotFoundError as error:
        raise ConfigError(
            f"{error.filename} does not exist; `openlora init` makes a keystore and its password"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{config.keystore} cannot be read as a keystore: {error}") from None
    try:
        private_key = Account.decrypt(keystore, password)
    except ValueError as error:
        if "MAC mismatch" in str(error):
            raise ConfigError(
                f"the password in {config.password_file} does not open {config.keystore}; put the right one there"
            ) from None
        raise ConfigError(f"{config.keystore} is not a keystore v3 file: {error}") from None
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{config.keystore} is not a keystore v3 file ({type(error).__name__})") from None
    account: LocalAccount = Account.from_key(private_key)
    return account


def create_key(folder: Path, name: str, private_key: bytes | None = None) -> tuple[KeyConfig, str]:
    """Writes `name.json` and `name.password` (both readable by the owner alone) and returns them with the address.

    A fresh key is drawn unless one is given. Refuses to overwrite: a key
    that is gone is money that is gone.
    """
    config = KeyConfig(keystore=folder / f"{name}.json", password_file=folder / f"{name}.password")
    files = (config.password_file, config.keystore)
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists already; move it away before making another key")
    account = Account.from_key(private_key or secrets.token_bytes(32))
    password = secrets.token_urlsafe(24)
    keystore = Account.encrypt(account.key, password, kdf="scrypt", iterations=SCRYPT_N)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(files, (password, json.dumps(keystore)), strict=True):
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text + "\n")
    return config, account.address
