"""What a topology file, the environment and --set may say, and how a mistake in each is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.config import ConfigError, load
from components.config.source import keys, variable
from components.config.topology import REPOSITORY, Topology

NOTHING: dict[str, str] = {}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def problems(file: Path, text: str) -> list[str]:
    """The lines of the error that ``text`` gives, without the folder of the file."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, environ=NOTHING)
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


def test_no_file_is_the_laptop_default() -> None:
    assert load(None, environ=NOTHING) == load(REPOSITORY / "configs" / "local.yaml", environ=NOTHING)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_file_in_configs_is_valid(path: Path) -> None:
    load(path, environ=NOTHING)


def test_an_empty_file_is_all_defaults(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert load(file, environ=NOTHING) == load(None, environ=NOTHING)


def test_two_of_each() -> None:
    topology = load(REPOSITORY / "configs" / "local-e2p2d2.yaml", environ=NOTHING)
    assert (topology.encode.replicas, topology.prefill.replicas, topology.decode.replicas) == (2, 2, 2)


def test_a_wrong_value_is_reported_at_its_key(file: Path) -> None:
    assert problems(file, "encode:\n  threads: 1\n  replicas: -1\n") == [
        "x.yaml:3:3: encode.replicas: input should be greater than or equal to 0"
    ]


def test_a_wrong_list_item_is_reported_at_the_item(file: Path) -> None:
    assert problems(file, "nats:\n  servers: [nats://a:4222, 7]\n") == [
        "x.yaml:2:28: nats.servers.1: input should be a valid string"
    ]


@pytest.mark.parametrize(
    "endpoint",
    [
        "localhost",
        "localhost:",
        ":2379",
        "http://localhost:2379",
        "localhost:0",
        "localhost:99999",
        "::1:2379",
        "a b:1",
    ],
)
def test_an_etcd_endpoint_that_is_none(file: Path, endpoint: str) -> None:
    assert problems(file, f"etcd:\n  endpoints: ['a:2379', '{endpoint}']\n") == [
        "x.yaml:2:25: etcd.endpoints.1: not host:port (an IPv6 address in brackets, no http://)"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "localhost:4222",
        "nats://",
        "nats://:4222",
        "http://a:4222",
        "nats://a:99999",
        "nats://a:0",
        "nats://a:b",
        "nats://u:secret@a:4222/x",
        "nats://[::1",
        "nats://a b",
    ],
)
def test_a_nats_url_that_is_none(file: Path, url: str) -> None:
    assert problems(file, f"nats:\n  servers: ['{url}']\n") == [
        "x.yaml:2:13: nats.servers.0: not nats://host:port or tls://host:port"
    ]


def test_addresses_of_servers(file: Path) -> None:
    file.write_text(
        "etcd: {endpoints: ['etcd-0.etcd:2379', '10.0.0.1:2379', '[::1]:2379']}\n"
        "nats: {servers: ['nats://nats', 'nats://u:p@10.0.0.1:4222', 'tls://[::1]:4222/']}\n"
    )
    topology = load(file, environ=NOTHING)
    assert (len(topology.etcd.addresses), len(topology.nats.addresses)) == (3, 3)


def test_an_unknown_key_names_the_one_that_was_meant(file: Path) -> None:
    assert problems(file, "encode:\n  media:\n    max_byte: 3\n") == [
        "x.yaml:3:5: encode.media.max_byte: no such setting (did you mean max_bytes?)"
    ]


def test_all_problems_are_reported_at_once(file: Path) -> None:
    assert [line.split(":")[1] for line in problems(file, "engine: fast\nlog_level: loud\nprefill: 3\n")] == [
        "1",
        "2",
        "3",
    ]


def test_a_condition_between_keys_is_reported_at_their_section(file: Path) -> None:
    assert problems(file, "log_level: info\ndecode:\n  kv_tokens: 17\n") == [
        "x.yaml:2:1: decode: kv_tokens (17) is not a multiple of block_tokens (16)"
    ]


def test_a_key_given_twice(file: Path) -> None:
    assert problems(file, "encode:\n  replicas: 1\n  replicas: 2\n") == ["x.yaml:3:3: replicas is given twice"]


def test_not_yaml(file: Path) -> None:
    (line,) = problems(file, "encode:\n  replicas: 1\n threads: 2\n")
    assert line.startswith("x.yaml:3:2: ")


def test_not_a_mapping(file: Path) -> None:
    assert problems(file, "\n- a\n") == ["x.yaml:2:1: the file must hold keys and values"]


def test_a_number_in_quotes_is_not_a_number(file: Path) -> None:
    assert problems(file, 'decode:\n  max_batch: "8"\n') == [
        "x.yaml:2:3: decode.max_batch: input should be a valid integer"
    ]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: .*No such file"):
        load(tmp_path / "none.yaml", environ=NOTHING)


def test_not_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file, environ=NOTHING)


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("256MiB", 256 * 2**20), ("'1 GB'", 10**9), ("12 KiB", 12 * 1024)]
)
def test_sizes_may_have_a_unit(file: Path, text: str, size: int) -> None:
    file.write_text(f"encode:\n  pool_bytes: {text}\n")
    assert load(file, environ=NOTHING).encode.pool_bytes == size


def test_a_wrong_unit_lists_the_right_ones(file: Path) -> None:
    (line,) = problems(file, "encode:\n  pool_bytes: 3 MeB\n")
    assert line.startswith("x.yaml:2:3: encode.pool_bytes: not a size: ")
    assert "MiB" in line


def test_the_later_place_wins(file: Path) -> None:
    file.write_text("frontend:\n  port: 1001\n  host: 0.0.0.0\n")
    environ = {"TRIPTYCH_FRONTEND__PORT": "1002", "TRIPTYCH_ENCODE__MEDIA__ALLOW_HTTP": "false"}
    assert load(file, environ=NOTHING).frontend.port == 1001
    assert load(file, environ=environ).frontend.port == 1002
    topology = load(file, ["frontend.port=1003", "frontend.port=1004"], environ)
    assert topology.frontend.port == 1004
    assert topology.frontend.host == "0.0.0.0"
    assert topology.encode.media.allow_http is False


def test_every_setting_has_its_own_variable() -> None:
    names = [variable(key) for key, _ in keys(Topology)]
    assert len(names) == len(set(names))
    assert {"TRIPTYCH_LOG_LEVEL", "TRIPTYCH_ENCODE__MEDIA__MAX_BYTES"} <= set(names)


def test_lists_and_texts_in_overrides() -> None:
    overrides = ["nats.servers=nats://a:1, nats://b:2", "etcd.endpoints=[c:3]", "model.name=7", "transfer.ucx_tls=null"]
    topology = load(None, overrides, {"TRIPTYCH_TRANSFER__UCX_TLS": "tcp,self"})
    assert topology.nats.addresses == ("nats://a:1", "nats://b:2")
    assert topology.etcd.addresses == ("c:3",)
    assert topology.model.name == "7"
    assert topology.transfer.ucx_tls is None


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("[::1]:2", ("[::1]:2",)),
        ("[::1]:2,[::2]:3", ("[::1]:2", "[::2]:3")),
        ("[[::1]:2]", ("[::1]:2",)),
        ('["[::1]:2", a:3]', ("[::1]:2", "a:3")),
        ("[127.0.0.1:2379, a:1]", ("127.0.0.1:2379", "a:1")),
        ("", ()),
        ("[]", ()),
    ],
)
def test_lists_with_brackets_in_their_items(text: str, endpoints: tuple[str, ...]) -> None:
    assert load(None, [f"etcd.endpoints={text}"], NOTHING).etcd.endpoints == endpoints


def test_a_wrong_override_names_itself() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, ["frontend.port=http"], {"TRIPTYCH_DECODE__MAX_BATCH": "0"})
    assert sorted(str(caught.value).splitlines()) == [
        "--set frontend.port=http: frontend.port: input should be a valid integer",
        "TRIPTYCH_DECODE__MAX_BATCH: decode.max_batch: input should be greater than or equal to 1",
    ]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("frontend.prot=1", r"frontend\.prot: no such setting \(did you mean frontend\.port\?\)"),
        ("frontend=1", "frontend: no such setting"),
        ("frontend.port", r"write it as section\.key=value"),
    ],
)
def test_an_override_of_nothing(override: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load(None, [override], NOTHING)


def test_a_variable_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"TRIPTYCH_ENCODE__REPLICSA: .*did you mean TRIPTYCH_ENCODE__REPLICAS\?"):
        load(None, environ={"TRIPTYCH_ENCODE__REPLICSA": "2"})


def test_variables_that_kubernetes_makes_are_left_alone() -> None:
    topology = load(
        None, environ={"TRIPTYCH_FRONTEND_PORT": "tcp://10.0.0.1:8000", "TRIPTYCH_ENCODE_SERVICE_HOST": "x"}
    )
    assert topology.frontend.port == 8000


def test_embedded_servers_are_found_by_their_ports() -> None:
    topology = load(None, ["nats.port=5000", "etcd.port=5001"], NOTHING)
    assert topology.nats.addresses == ("nats://127.0.0.1:5000",)
    assert topology.etcd.addresses == ("127.0.0.1:5001",)


def test_a_model_is_a_folder_or_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = load(None, ["model.path=weights/mine"], NOTHING).model
    assert (folder.path, folder.name) == (str(tmp_path / "weights" / "mine"), "mine")
    hub = load(None, ["model.path=Qwen/Qwen2.5-VL-3B-Instruct"], NOTHING).model
    assert (hub.path, hub.name) == ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-3B-Instruct")


def test_what_is_written_down_reads_back(file: Path) -> None:
    """``triptych up`` hands its children the checked settings as a file."""
    topology = load(None, ["frontend.port=1234", "nats.servers=nats://a:1"], NOTHING)
    file.write_text(topology.model_dump_json())
    assert load(file, environ=NOTHING) == topology


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [
        ([], "lo"),
        (["nats.servers=nats://localhost:1", "etcd.endpoints=[::1]:2"], "lo"),
        (["nats.servers=nats://127.0.0.1:1, nats://10.0.0.1:1"], None),
        (["nats.servers=nats://me:secret@nats:1"], None),
        (["etcd.endpoints=etcd:2379"], None),
        (["transfer.ucx_net_devices=all"], "all"),
        (["etcd.endpoints=etcd:2379", "transfer.ucx_net_devices=mlx5_0:1"], "mlx5_0:1"),
    ],
)
def test_ucx_keeps_to_loopback_where_nobody_else_can_take_part(overrides: list[str], devices: str | None) -> None:
    assert load(None, overrides, environ=NOTHING).ucx.get("NET_DEVICES") == devices
