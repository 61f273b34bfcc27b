import re
from pathlib import Path

import pytest

from openlora.node.config import ClientConfig, KeyConfig, NodeConfig, load
from openlora.node.config_files import ChainEntry, write_client_config, write_node_config
from openlora.node.errors import ConfigError

REPOSITORY = Path(__file__).resolve().parents[2]


KEY = KeyConfig(
    keystore=Path("/etc/openlora/hot.json"), password_file=Path("/run/credentials/openlora-agent.service/hot.password")
)


def write(folder: Path) -> Path:
    path = folder / "node.toml"
    chain = ChainEntry(31337, "http://127.0.0.1:8545", folder / "deployment.json")
    key = KeyConfig(keystore=folder / "hot.json", password_file=folder / "hot.password")
    write_node_config(path, chain, model=folder / "model", key=key, state_dir=folder, content_dir=folder / "content")
    return path


def test_what_init_writes_is_read_back_with_paths_relative_to_the_file(tmp_path):
    config = load(write(tmp_path), NodeConfig)
    assert config.chain.chain_id == 31337
    assert config.model.path == tmp_path / "model"
    assert config.hot_key.keystore == tmp_path / "hot.json"
    assert config.socket == tmp_path / "agent.sock"


def test_the_written_file_names_every_key_with_its_default(tmp_path):
    import tomllib

    import msgspec

    text = write(tmp_path).read_text()
    raw = tomllib.loads(text)
    config = load(tmp_path / "node.toml", NodeConfig)
    for field in msgspec.structs.fields(NodeConfig):
        table = getattr(config, field.name)
        if isinstance(table, Path):
            continue
        assert set(raw[field.name]) == {part.name for part in msgspec.structs.fields(type(table))}
    assert config.engine == type(config.engine)()
    assert config.market == type(config.market)()
    assert config.network == type(config.network)()


def test_the_example_is_what_init_writes(tmp_path):
    path = tmp_path / "node.example.toml"
    write_node_config(
        path,
        ChainEntry(31337, "http://127.0.0.1:8545", Path("/etc/openlora/deployment.json")),
        model=Path("/var/lib/openlora/models/smollm2-135m-instruct"),
        key=KEY,
        state_dir=Path("/var/lib/openlora"),
        content_dir=Path("/var/lib/openlora/content"),
    )
    assert (REPOSITORY / "configs/node.example.toml").read_text() == path.read_text()


def test_every_problem_is_reported_at_once(tmp_path):
    path = write(tmp_path)
    text = path.read_text().replace("poll_s", "pol_s").replace("kv_tokens = 32768", 'kv_tokens = "many"')
    path.write_text("colour = 1\n" + text.replace("chain_id = 31337", ""))
    with pytest.raises(ConfigError) as caught:
        load(path, NodeConfig)
    message = str(caught.value)
    assert "unknown key colour;" in message
    assert "unknown key chain.pol_s (is it chain.poll_s?)" in message
    assert "missing key chain.chain_id" in message
    assert "engine.kv_tokens" in message


@pytest.mark.parametrize(
    "urls",
    ["[]", '["127.0.0.1:8545"]', '["http://a", "ws://b"]', '["http://[::1"]', '["http://"]', '["http://a:99999"]'],
)
def test_an_rpc_is_named_by_its_url(tmp_path, urls):
    path = write(tmp_path)
    path.write_text(path.read_text().replace('["http://127.0.0.1:8545"]', urls))
    with pytest.raises(ConfigError, match="rpc_urls must name"):
        load(path, NodeConfig)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        *(("chain", "poll_s", value) for value in ("0", "-1", "nan", "inf")),
        *(("chain", "confirmations", value) for value in ("0", "-1")),
        *(("chain", "chain_id", value) for value in ("0", "-1", "1" + "0" * 30)),
        *(("market", "turn_s", value) for value in ("-1", "nan", "inf")),
        ("market", "min_time_left_s", "-1"),
        ("market", "min_in_price_wei_per_k", "-1"),
        ("sessions", "settle_at_wei", "-1"),
        ("engine", "kv_tokens", "0"),
        ("engine.vllm", "gpu_memory", "nan"),
        ("storage", "min_free_bytes", "-1"),
        ("telemetry.mqtt", "port", "70000"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_by_its_key(tmp_path, table, key, value):
    path = write(tmp_path)
    path.write_text(re.sub(rf"^{key} = .*$", f"{key} = {value}", path.read_text(), count=1, flags=re.MULTILINE))
    with pytest.raises(ConfigError, match=rf"{table}\.{key}: Expected"):
        load(path, NodeConfig)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("state_dir = ", "cannot be read"),
        ("chain = 3", "chain must be a table"),
        ('state_dir = ""', "expected a path"),
        ('state_dir = "a\\u0000b"', "expected a path"),
        ('state_dir = "~nobody-of-that-name/x"', "home of .* is not known"),
        ("state_dir = " + "[" * 3_000, "cannot be read"),
        ("state_dir = " + "1" * 5_000, "cannot be read"),
        ("#" * (2 << 20), "cannot be read: it has more than"),
    ],
    ids=range(8),
)
def test_malformed_files_are_one_sentence(tmp_path, text, complaint):
    path = tmp_path / "node.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load(path, NodeConfig)


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="openlora init"):
        load(tmp_path / "node.toml", NodeConfig)
    with pytest.raises(ConfigError, match="openlora account"):
        load(tmp_path / "client.toml", ClientConfig)


@pytest.mark.parametrize(
    "bootstrap", [(), ("/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW", "/dns4/a.example/tcp/4001/p2p/12D3KooX")]
)
def test_client_files_name_the_peers_to_join_by(tmp_path, bootstrap):
    path = tmp_path / "client.toml"
    chain = ChainEntry(1, "http://127.0.0.1:1", tmp_path / "d.json")
    write_client_config(path, chain, key=KEY, content_dir=tmp_path / "content", bootstrap=bootstrap)
    config = load(path, ClientConfig)
    assert config.network.bootstrap == bootstrap
    assert config.key == KEY


def test_relative_paths_are_written_so_that_the_file_finds_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("net/client/client.toml")
    write_client_config(
        path, ChainEntry(1, "http://127.0.0.1:1", Path("net/d.json")), key=KEY, content_dir=Path("net/client/content")
    )
    assert 'content_dir = "content"' in path.read_text()
    assert load(path, ClientConfig).chain.deployment == tmp_path / "net/d.json"


def test_odd_characters_in_paths_survive(tmp_path):
    folder = tmp_path / 'a "quoted"  # name\\x'
    folder.mkdir()
    config = load(write(folder), NodeConfig)
    assert config.model.path == folder / "model"
