"""The manifests: what the API server would take, and what the commands and the image know."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from lvlm_guard.cli.app import command_of
from lvlm_guard.serve.front.routes import OPEN

DEPLOY = Path(__file__).parents[2] / "deploy"
BASE = DEPLOY / "kubernetes" / "base"
RELEASES = ("1.30", "1.34")
KUSTOMIZE = shutil.which("kustomize")


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


@pytest.fixture(scope="module")
def objects():
    kustomization = documents((BASE / "kustomization.yaml").read_text())[0]
    return [one for name in kustomization["resources"] for one in documents((BASE / name).read_text())]


def of_kind(objects, kind, name):
    (found,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, name))
    return found


def container(objects, name):
    (found,) = of_kind(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("release", RELEASES)
def test_every_object_is_one_that_the_api_takes(objects, release):
    for one in objects:
        kubernetes_validate.validate(one, release, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(objects[0] | {"spec": {"replica": 1}}, release, strict=True)


@pytest.mark.skipif(KUSTOMIZE is None, reason="apt-get install kustomize")
@pytest.mark.parametrize("folder", ["base", "cpu"])
def test_kustomize_builds_it_and_the_overlay_needs_no_gpu(folder):
    built = subprocess.run([KUSTOMIZE, "build", BASE.parent / folder], capture_output=True, text=True, check=True)
    made = documents(built.stdout)
    for one in made:
        kubernetes_validate.validate(one, RELEASES[-1], strict=True)
        assert one["metadata"]["namespace"] == "lvlm-guard"
    assert ("nvidia.com/gpu" in built.stdout) == (folder == "base")
    tag = {"base": "serve", "cpu": "serve-cpu"}[folder]
    assert {container(made, name)["image"] for name in ("server", "maskd")} == {f"lvlm-guard:{tag}"}
    (settings,) = (one for one in made if one["kind"] == "ConfigMap")
    assert container(made, "server")["envFrom"][0]["configMapRef"]["name"] == settings["metadata"]["name"]


@pytest.mark.parametrize("name", ["server", "maskd"])
def test_each_container_starts_a_command_with_options_that_it_has(objects, name):
    command, *words = container(objects, name)["args"]
    known = {option for part in command_of(command).params for option in part.opts}
    assert {word for word in words if word.startswith("--")} <= known
    settings = documents((BASE / "kustomization.yaml").read_text())[0]["configMapGenerator"][0]["literals"]
    told = {line.partition("=")[0] for line in settings}
    assert set(re.findall(r"\$\((\w+)\)", " ".join(words))) <= told


def test_options_of_vllm_reach_the_command_word_by_word(objects, tmp_path):
    fake = tmp_path / "lvlm-guard"
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "VLLM_OPTIONS": "--max-model-len 64 --seed=1"}
    words = [*container(objects, "server")["command"], "serve", "a b"]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["serve", "a b", "--max-model-len", "64", "--seed=1"]


def test_probes_ask_what_is_answered_without_a_key(objects):
    server = container(objects, "server")
    asked = {kind: server[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert asked == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    assert {("GET", path) for path in asked.values()} <= OPEN
    pod = of_kind(objects, "Deployment", "server")["spec"]["template"]["spec"]
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + 30 + 60  # --shutdown-timeout, then vLLM


def test_the_server_asks_the_matcher_where_its_service_listens(objects):
    words = container(objects, "server")["args"]
    (port,) = of_kind(objects, "Service", "maskd")["spec"]["ports"]
    assert words[words.index("--maskd") + 1] == f"http://maskd:{port['port']}"
    for name in ("server", "maskd"):
        (named,) = container(objects, name)["ports"]
        words = container(objects, name)["args"]
        assert words[words.index("--port") + 1] == str(named["containerPort"])
        labels = of_kind(objects, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        assert of_kind(objects, "Service", name)["spec"]["selector"].items() <= labels.items()


def test_only_servers_and_prometheus_reach_the_matcher(objects):
    policy = of_kind(objects, "NetworkPolicy", "maskd")["spec"]
    (rule,) = policy["ingress"]
    assert [sorted(source) for source in rule["from"]] == [["podSelector"], ["namespaceSelector"]]


@pytest.mark.parametrize("name", ["server", "maskd"])
def test_each_pod_runs_as_the_images_user_without_rights(objects, name):
    pod = of_kind(objects, "Deployment", name)["spec"]["template"]["spec"]
    (user,) = re.findall(r"useradd .*--uid (\d+)", (DEPLOY / "Dockerfile").read_text())
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["fsGroup"] == int(user)
    it = container(objects, name)["securityContext"]
    assert (it["allowPrivilegeEscalation"], it["capabilities"]) == (False, {"drop": ["ALL"]})
    assert not pod["automountServiceAccountToken"]


def test_the_key_is_a_secret_without_which_no_pod_starts(objects):
    (key,) = (one for one in container(objects, "server")["env"] if one["name"] == "VLLM_API_KEY")
    assert "optional" not in key["valueFrom"]["secretKeyRef"]
