"""A real mosquitto under the configuration that we ship, and a wire to it that can be cut."""

import asyncio
import datetime
import ipaddress
import os
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiomqtt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SEARCH = os.environ.get("PATH", "") + ":/usr/sbin"  # where Debian puts the daemon
DASHBOARD = ("dashboard", "see everything")


@dataclass(frozen=True)
class Mosquitto:
    port: int
    websocket_port: int
    ca_file: Path
    process_id: int

    def reload(self) -> None:
        """It reads its ACL again."""
        os.kill(self.process_id, signal.SIGHUP)

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def dashboard(self, *, websocket: bool = False) -> aiomqtt.Client:
        return aiomqtt.Client(
            "127.0.0.1",
            self.websocket_port if websocket else self.port,
            username=DASHBOARD[0],
            password=DASHBOARD[1],
            tls_context=self.tls,
            transport="websockets" if websocket else "tcp",
        )


@asynccontextmanager
async def mosquitto(folder: Path, users: dict[str, str]) -> AsyncIterator[Mosquitto]:
    """Runs until the block ends; the test is skipped where there is no mosquitto. Dashboard is a user already."""
    daemon, passwd = shutil.which("mosquitto", path=SEARCH), shutil.which("mosquitto_passwd", path=SEARCH)
    if daemon is None or passwd is None:
        pytest.skip("needs mosquitto (Debian: mosquitto)")
    write_certificate(folder)
    passwords = folder / "openlora.passwords"
    passwords.touch(mode=0o600)
    for name, password in {DASHBOARD[0]: DASHBOARD[1], **users}.items():
        command = [passwd, "-b", str(passwords), name, password]
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)
    shutil.copy(CONFIGS / "mosquitto.acl", folder / "openlora.acl")
    port, websocket_port = free_port(), free_port()
    text = (CONFIGS / "mosquitto.conf").read_text()
    text = text.replace("/etc/mosquitto/certs/", f"{folder}/").replace("/etc/mosquitto/", f"{folder}/")
    text = text.replace("/var/lib/mosquitto/", f"{folder}/")
    text = text.replace("listener 8883", f"listener {port} 127.0.0.1")
    text = text.replace("listener 8884", f"listener {websocket_port} 127.0.0.1")
    user = "user root\n" if os.geteuid() == 0 else ""  # it would give up root, and with it the test's files
    (folder / "mosquitto.conf").write_text(f"{user}log_dest stderr\n{text}")
    process = await asyncio.create_subprocess_exec(
        daemon, "-c", str(folder / "mosquitto.conf"), stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(10):
            said = b""
            while b" running" not in (line := await process.stderr.readline()):
                said += line
                assert line, said.decode()
                assert b"port 1883" not in line, "the configuration opens a listener without TLS"
        drain = asyncio.create_task(process.stderr.read())
        yield Mosquitto(port, websocket_port, folder / "server.crt", process.pid)
        drain.cancel()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass
class Wire:
    """A TCP proxy to the broker."""

    target_port: int
    port: int = 0
    accepts: bool = True
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Every connection ends without a word, and no new one comes through until `mend`."""
        self.accepts = False
        for writer in tuple(self._writers):
            writer.transport.abort()

    def mend(self) -> None:
        self.accepts = True

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.accepts:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        ends = {writer, far_writer}
        self._writers |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._writers -= ends
            for end in ends:
                end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def wire_to(port: int) -> AsyncIterator[Wire]:
    wire = Wire(port)
    server = await asyncio.start_server(wire.carry, "127.0.0.1", 0)
    wire.port = server.sockets[0].getsockname()[1]
    async with server:
        yield wire
        wire.cut()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def write_certificate(folder: Path) -> None:
    """`server.crt`, its own authority, and `server.key`, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    (folder / "server.key").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))
