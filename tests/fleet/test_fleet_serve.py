"""`fleet serve` before anything is loaded: flags, keys, the port; and the manifests for Kubernetes."""

import shlex
import socket

import pytest
import yaml

from conftest import ROOT
from sdpersonal.cli.commands.fleet import parse_fleet_training
from sdpersonal.cli.main import main
from sdpersonal.errors import UserError
from sdpersonal.fleet.serving import run
from sdpersonal.fleet.serving.run import read_keys
from support import fleet

fleet.require_ray()
KUBERNETES = ROOT / "examples" / "kubernetes"


@pytest.fixture
def nothing_starts(monkeypatch):
    def fail(*args, **options):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(run, "check_installed", lambda serve: None)
    monkeypatch.setattr("sdpersonal.fleet.cluster.check_installed", lambda serve: None)
    monkeypatch.setattr(run, "connect", fail)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--host", "0.0.0.0"], "--keys"),
        (["--min-replicas", "3", "--max-replicas", "2"], "--max-replicas is 2"),
        (["--host", "no.such.host.invalid", "--keys", "keys"], "--host no.such.host.invalid"),
        (["--keys", "absent"], "absent"),
        (["--port", "80"], "--port"),
    ],
)
@pytest.mark.tries_network
def test_invalid_serve_flags_are_refused_before_ray_starts(nothing_starts, tmp_path, capsys, flags, message):
    keys = tmp_path / "keys"
    keys.write_text("anna:" + "a" * 30)
    keys.chmod(0o600)
    flags = [str(keys) if flag == "keys" else flag for flag in flags]
    assert main(["fleet", "serve", "--storage", str(tmp_path / "fleet"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") <= 2


def test_a_port_in_use_is_refused_with_a_message(nothing_starts, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["fleet", "serve", "--storage", str(tmp_path / "fleet"), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port} cannot be used: address already in use." in capsys.readouterr().err


def test_short_duplicate_or_readable_keys_are_refused(tmp_path):
    path = tmp_path / "keys"
    for text, message in [
        ("anna:short", "not NAME:KEY, or the key is short"),
        ("anna:" + "a" * 30 + "\nben:" + "a" * 30, "the same key"),
        ("Anna:" + "a" * 30, "no user's name"),
        ("", "has no line"),
    ]:
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(UserError, match=message):
            read_keys(path)
    path.write_text("anna:" + "a" * 30)
    assert read_keys(path) == {"anna": "a" * 30}
    path.chmod(0o644)
    with pytest.raises(UserError, match="Others can read"):
        read_keys(path)


def manifest(name, kind):
    documents = list(yaml.safe_load_all((KUBERNETES / name).read_text()))
    [document] = [document for document in documents if document["kind"] == kind]
    return document["spec"], documents


@pytest.mark.parametrize(
    ("name", "kind", "cluster"),
    [
        ("fleet-serve.yaml", "RayService", "rayClusterConfig"),
        ("fleet-train.yaml", "RayJob", "rayClusterSpec"),
    ],
)
def test_the_manifests_require_a_token_and_schedule_no_work_on_the_head(name, kind, cluster):
    spec = manifest(name, kind)[0][cluster]
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    head = spec["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    [container] = head["template"]["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert spec["rayVersion"] in (ROOT / "constraints.txt").read_text()


def test_the_network_policy_opens_only_the_server_port():
    _, documents = manifest("fleet-serve.yaml", "RayService")
    [policy] = [document["spec"] for document in documents if document["kind"] == "NetworkPolicy"]
    from_ingress = [rule for rule in policy["ingress"] if "ports" in rule]
    assert [rule["ports"] for rule in from_ingress] == [[{"port": 8000, "protocol": "TCP"}]]
    assert not [document for document in documents if document["kind"] == "Service"]


def test_the_manifests_use_existing_functions_and_commands(tmp_path):
    import importlib
    import inspect

    spec, _ = manifest("fleet-serve.yaml", "RayService")
    [application] = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, _, function = application["import_path"].partition(":")
    build = getattr(importlib.import_module(module), function)
    assert all(name in inspect.getsource(build) for name in application["args"])
    (tmp_path / "people" / "anna").mkdir(parents=True)
    (tmp_path / "people" / "anna" / "1.jpg").write_bytes(b"photo")
    entry = manifest("fleet-train.yaml", "RayJob")[0]["entrypoint"].replace("/fleet/people", str(tmp_path / "people"))
    words = shlex.split(entry)
    training = parse_fleet_training(words[3:], "sdpersonal fleet train")
    assert words[:3] == ["sdpersonal", "fleet", "train"] and training.args.address == "auto"
