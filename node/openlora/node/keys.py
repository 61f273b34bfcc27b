"""Keystores: keystore v3 files, unlocked by a password that comes from a file, never from a flag or the environment."""

import json
import secrets
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import is_hex_address, to_checksum_address
from msgspec import Meta

from openlora.node.config import KeyConfig, small_text
from openlora.node.errors import ConfigError

SCRYPT_N: Final = 1 << 18  # the cost of one guess
_MAX_SCRYPT_NR: Final = 1 << 23  # 1 GiB


class _KdfParams(msgspec.Struct):
    """The cost of unlocking, within what a person waits for."""

    dklen: Annotated[int, Meta(ge=32, le=32)]
    salt: str
    n: Annotated[int, Meta(ge=2, le=1 << 20)] = 2  # scrypt's
    r: Annotated[int, Meta(ge=1, le=32)] = 1
    p: Annotated[int, Meta(ge=1, le=16)] = 1
    prf: Literal["hmac-sha256"] = "hmac-sha256"
    c: Annotated[int, Meta(ge=1, le=10**7)] = 1  # PBKDF2's

    def __post_init__(self) -> None:
        if self.n * self.r > _MAX_SCRYPT_NR:
            raise ValueError("n and r ask for more than 1 GiB of memory")


class _CipherParams(msgspec.Struct):
    iv: str


class _Crypto(msgspec.Struct):
    cipher: str
    ciphertext: str
    cipherparams: _CipherParams
    kdf: str
    kdfparams: _KdfParams
    mac: str


def load_key(config: KeyConfig) -> LocalAccount:
    """Unlocks a keystore. Raises ConfigError for a missing or malformed file and for a wrong password."""
    keystore = _keystore(config.keystore)
    password = read_password(config.password_file)
    return _decrypted(config.keystore, keystore, password, f"the password in {config.password_file}")


def read_password(path: Path) -> str:
    """Raises ConfigError."""
    try:
        return small_text(path).rstrip("\r\n")
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; put the file back, or correct the path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a password: {error}") from None


def unlock(path: Path, password: str, called: str = "the password") -> LocalAccount:
    """The key in a keystore. `called` names the password to people. Raises ConfigError."""
    return _decrypted(path, _keystore(path), password, called)


def _decrypted(path: Path, keystore: dict[str, Any], password: str, called: str) -> LocalAccount:
    try:
        msgspec.convert(keystore.get("crypto", keystore.get("Crypto")), _Crypto)
        private_key = Account.decrypt(keystore, password)
    except ValueError as error:
        if "MAC mismatch" in str(error):
            raise ConfigError(f"{called} does not open {path}; put the right one there") from None
        raise ConfigError(f"{path} is not a keystore v3 file: {error}") from None
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{path} is not a keystore v3 file ({type(error).__name__})") from None
    account: LocalAccount = Account.from_key(private_key)
    return account


def address_in(path: Path) -> ChecksumAddress:
    """Whose keystore it says it is, which takes no password. Raises ConfigError when it does not say."""
    address = _keystore(path).get("address")
    if not isinstance(address, str) or not is_hex_address(address):
        raise ConfigError(f"{path} does not name its address; give it as --from")
    return to_checksum_address(address)


def _keystore(path: Path) -> dict[str, Any]:
    try:
        keystore = json.loads(small_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; put the file back, or correct the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as a keystore: {error}") from None
    if not isinstance(keystore, dict):
        raise ConfigError(f"{path} is not a keystore v3 file")
    return keystore


def create_key(folder: Path, name: str, private_key: bytes | None = None) -> tuple[KeyConfig, str]:
    """Writes `name.json` and `name.password` (both readable by the owner alone) and returns them with the address.

    A fresh key is drawn unless one is given. Nothing is overwritten: a key that is gone is money that is gone. Raises
    ConfigError.
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
