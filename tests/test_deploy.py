"""What deploy/ and docs/operations.md claim: every flag and variable exists, every default is the real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import typer
import yaml
from buckets import bucket_of_models
from processes import serving_process
from typer.main import get_command

from hybridge.cli.application import application
from hybridge.server.settings import Settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
FILES = [*sorted(DEPLOY.iterdir()), ROOT / "docs" / "operations.md"]


def flags_of_serve() -> set[str]:
    serve = get_command(application).get_command(typer.Context(get_command(application)), "serve")
    return {flag for parameter in serve.params for flag in parameter.opts if flag.startswith("--")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_variables_exist(file) -> None:
    known = {f"HYBRIDGE_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"HYBRIDGE_[A-Z_]*[A-Z]\b", file.read_text(encoding="utf-8"))) <= known


def test_flags_exist() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    asked = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page))
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    asked |= set(re.findall(r'"(--[a-z-]+)"', compose))
    assert len(asked) > 12
    assert asked - {"--admin"} <= flags_of_serve()  # which is for `hybridge keys add`


def test_the_table_of_limits() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d.]+) \|", page, re.MULTILINE))
    settings = {name.replace("_", "-"): field.default for name, field in Settings.model_fields.items()}
    for name, default in listed.items():
        assert float(default) == settings[name]
    assert set(listed) == {
        name
        for name in settings
        if name.startswith(("max-", "head-", "body-", "queue-", "jobs-", "job-", "spool-", "grace-"))
    }


def test_longer_than_the_grace_period() -> None:
    grace_s = Settings.model_fields["grace_s"].default
    unit = (DEPLOY / "hybridge.service").read_text(encoding="utf-8")
    compose = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    for text, pattern in ((unit, r"TimeoutStopSec=(\d+)"), (compose, r"stop_grace_period: (\d+)s")):
        assert int(re.search(pattern, text)[1]) > grace_s
    for text, pattern in ((unit, r"LimitNOFILE=(\d+)"), (compose, r"nofile: (\d+)")):
        assert int(re.search(pattern, text)[1]) > Settings.model_fields["max_connections"].default


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_one(tmp_path) -> None:
    unit = (DEPLOY / "hybridge.service").read_text(encoding="utf-8")
    file = tmp_path / "hybridge.service"
    file.write_text(unit.replace("/opt/hybridge/bin/hybridge", "/bin/true"))
    command = ["systemd-analyze", "verify", "--man=no", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not [line for line in done.stderr.splitlines() if "hybridge.service" in line]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's, in order: (word, the rest)."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_dockerfile_drops_root_and_starts_without_a_shell() -> None:
    words = [word for word, _ in instructions()]
    found = dict(instructions())
    assert found["USER"] == "hybridge"
    assert words.index("RUN") < words.index("USER")  # nothing is built as somebody who may not
    assert json.loads(found["ENTRYPOINT"]) == ["hybridge"]
    assert json.loads(found["CMD"]) == ["serve"]
    copies = [rest.split() for word, rest in instructions() if word == "COPY"]
    copied = [part for parts in copies if not parts[0].startswith("--from=") for part in parts[:-1]]
    assert copied
    assert all((ROOT / part).exists() for part in copied)


def test_the_container_may_write_to_its_volumes() -> None:
    """A volume begins with the owner that its folder has in the image, if that is there before the volume is."""
    found = dict(instructions())
    volumes = set(json.loads(found["VOLUME"]))
    made = set(re.findall(r"--home-dir (\S+) hybridge\b|--owner=hybridge --mode=0700 (\S+)", found["RUN"]))
    assert volumes == {home or folder for home, folder in made}
    variables = dict(part.split("=", 1) for part in found["ENV"].split())
    assert variables["HF_HOME"] in volumes
    assert "HYBRIDGE_PORT" not in variables  # it would have priority over a cloud's own
    assert found["EXPOSE"].split() == [str(Settings().port), str(Settings(cloud="sagemaker").port)]


def test_the_health_check_asks_a_real_server(server) -> None:
    _, _, command = dict(instructions())["HEALTHCHECK"].partition("CMD ")
    program, *arguments = json.loads(command)
    assert program == "python"
    for port, status in ((urlsplit(server).port, 0), (1, 1)):
        # A proxy that is not there: this machine is asked without it.
        environment = {**os.environ, "HYBRIDGE_PORT": str(port), "http_proxy": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, check=False)
        assert done.returncode == status


@pytest.mark.parametrize("cloud", ["huggingface", "sagemaker", "vertex"])
def test_the_container_starts_as_each_cloud_starts_it(cloud, specs, tmp_path) -> None:
    """SageMaker says `serve`, which the image does anyway; the others say nothing."""
    model = Path(specs["sd-v1"].source)
    variables = {"HYBRIDGE_CLOUD": cloud, "HYBRIDGE_LOG_FORMAT": "json", "XDG_CACHE_HOME": str(tmp_path)}
    with bucket_of_models() as (bucket, about_bucket):
        if cloud == "vertex":
            bucket.objects = {f"mine/{file.name}": file.read_bytes() for file in model.iterdir()}
            variables |= {
                **about_bucket,
                "AIP_STORAGE_URI": "gs://models/mine",
                "AIP_PREDICT_ROUTE": "/v1/x:predict",
            }
        else:
            variables["HYBRIDGE_MODELS"] = f"model={model}"
        with serving_process(**variables) as (_, address, _):
            found = httpx.get(f"{address}/v1/models").json()["models"]
            health = {"huggingface": "/health", "sagemaker": "/ping", "vertex": "/health"}[cloud]
            assert httpx.get(address + health).status_code == 200
            predict = {"huggingface": "/", "sagemaker": "/invocations", "vertex": "/v1/x:predict"}[cloud]
            answer = httpx.post(address + predict, json={"instances": [{"inputs": "AA=="}]})
    assert [(one["name"], one["state"]) for one in found] == [("model", "loaded")]
    assert "a tensor needs its shape and its dtype" in answer.json()["error"]


def test_the_compose_file() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service, found = compose["services"]["hybridge"], dict(instructions())
    context = DEPLOY / service["build"]["context"]
    assert (context / service["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    mounts = dict(volume.split(":") for volume in service["volumes"])
    assert set(mounts) == set(compose["volumes"])
    assert set(mounts.values()) == set(json.loads(found["VOLUME"]))  # all else is read-only
    assert service["read_only"] is True
    assert service["ports"] == [f"8000:{found['EXPOSE'].split()[0]}"]
    assert set(service["secrets"]) == set(compose["secrets"]) == {"keys"}
    assert service["command"] == ["serve", "--public", "--keys", "/run/secrets/keys"]


def test_the_gpu_s_compose_file_adds_a_device_and_nothing_else() -> None:
    plain, gpu = (
        yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8")) for name in ("compose.yaml", "compose.gpu.yaml")
    )
    assert gpu["services"].keys() == plain["services"].keys()
    service = gpu["services"]["hybridge"]
    assert service.keys() == {"environment", "deploy"}
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_what_the_image_installs_is_pinned() -> None:
    commands = next(rest for word, rest in instructions() if word == "RUN" and "wheel/*" in rest)
    assert commands.count("pip install") == commands.count("--constraint /constraints.txt") == 2


def test_the_kubernetes_manifest(server) -> None:
    parts = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    deployment, service = {part["kind"]: part for part in parts}.values()
    pod, found = deployment["spec"]["template"]["spec"], dict(instructions())
    (container,) = pod["containers"]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "http"
        assert httpx.get(f"{server}{asked['path']}").status_code == 200
    assert container["ports"] == [{"name": "http", "containerPort": int(found["EXPOSE"].split()[0])}]
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > int(variables["HYBRIDGE_GRACE_S"])
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted.keys() == {one["name"] for one in pod["volumes"]}
    assert set(mounted.values()) >= set(json.loads(found["VOLUME"]))  # all else is read-only
    assert container["args"][:2] == ["serve", "--public"]
    assert Path(container["args"][3]).parent == Path(mounted["keys"])
    assert set(container["args"]) & flags_of_serve() == {"--public", "--keys"}
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_the_kuberay_manifest_has_the_front_join_the_cluster() -> None:
    parts = list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text(encoding="utf-8")))
    cluster, front, service = parts
    assert [part["kind"] for part in parts] == ["RayCluster", "Deployment", "Service"]
    assert service["spec"]["selector"] == front["spec"]["selector"]["matchLabels"]
    pod = front["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (command,) = container["args"]
    assert f"--address={cluster['metadata']['name']}-head-svc:6379" in command
    settings = Settings(
        **{one["name"].removeprefix("HYBRIDGE_").lower(): one["value"] for one in container["env"]},
        keys="/etc/hybridge/keys",
    )
    assert settings.ray == "auto"
    (workers,) = cluster["spec"]["workerGroupSpecs"]
    assert settings.replicas == f"{workers['minReplicas']}:{workers['maxReplicas']}"
    (worker,) = workers["template"]["spec"]["containers"]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == settings.replica_gpus
    assert settings.memory < 16 * 2**30
    assert pod["terminationGracePeriodSeconds"] > settings.grace_s
    assert set(re.findall(r"(?<=hybridge ).*?(--[a-z]+)", command)) <= flags_of_serve()
