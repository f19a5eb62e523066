"""The files in deploy/: what they start is what the commands take, and what they watch is what is counted."""

import re
import subprocess
from pathlib import Path

import prometheus_client
import pytest
import yaml

from lvlm_guard.cli.app import command_of
from lvlm_guard.serve.front.metrics import FrontMetrics
from lvlm_guard.serve.front.requests import ANSWERS
from lvlm_guard.serve.maskd.metrics import Metrics
from lvlm_guard.serve.overruled import counters

DEPLOY = Path(__file__).parents[2] / "deploy"


class Loader(yaml.SafeLoader):
    """Reads compose's own tag `!reset` as nothing."""


Loader.add_constructor("!reset", lambda loader, node: None)


def read(name):
    return yaml.load((DEPLOY / name).read_text(), Loader)


@pytest.fixture(scope="module")
def services():
    return read("docker-compose.yaml")["services"]


@pytest.mark.parametrize("service", ["server", "maskd"])
def test_each_service_starts_a_command_with_options_that_it_has(services, service):
    name, *words = [str(word) for word in services[service]["command"]]
    command = command_of(name)
    known = {option for parameter in command.params for option in parameter.opts}
    given = [word for word in words if word.startswith("--")]
    assert len(given) >= 3
    assert set(given) <= known


def test_the_server_asks_the_matcher_service_where_it_listens_and_waits_until_it_is_well(services):
    server, maskd = services["server"]["command"], services["maskd"]["command"]
    port = maskd[maskd.index("--port") + 1]
    assert server[server.index("--maskd") + 1] == f"http://maskd:{port}"
    assert server[server.index("--model") + 1] == maskd[maskd.index("--model") + 1]
    assert services["server"]["depends_on"]["maskd"]["condition"] == "service_healthy"
    assert set(services["server"]["networks"]) & set(services["maskd"]["networks"])


def test_the_matcher_service_is_not_published_and_the_server_has_a_key_or_does_not_start(services):
    assert "ports" not in services["maskd"]
    assert "VLLM_API_KEY:?" in services["server"]["environment"]["VLLM_API_KEY"]
    assert all(str(port).startswith("127.0.0.1:") for port in services["prometheus"]["ports"])


@pytest.mark.parametrize("service", ["server", "maskd"])
def test_each_container_has_an_init_and_no_rights(services, service):
    it = services[service]
    assert (it["init"], it["cap_drop"], it["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])


def test_options_of_vllm_reach_the_command_word_by_word(services, tmp_path):
    fake = tmp_path / "lvlm-guard"
    fake.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    fake.chmod(0o755)
    words = [word.replace("$$", "$") for word in services["server"]["entrypoint"]]
    environment = {"PATH": f"{tmp_path}:/bin:/usr/bin", "VLLM_OPTIONS": "--max-model-len 64 --seed=1"}
    said = subprocess.run([*words, "serve", "a b"], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["serve", "a b", "--max-model-len", "64", "--seed=1"]


def test_a_server_is_well_when_its_guarded_names_are_open_and_gets_time_to_end(services):
    assert "/ready" in services["server"]["healthcheck"]["test"][-1]
    assert services["server"]["stop_grace_period"] == "2m"


def test_prometheus_scrapes_each_service_at_its_port(services):
    jobs = {
        job["job_name"]: job["static_configs"][0]["targets"][0] for job in read("prometheus.yaml")["scrape_configs"]
    }
    for name in ("server", "maskd"):
        command = services[name]["command"]
        assert jobs[name] == f"{name}:{command[command.index('--port') + 1]}"


def test_the_image_has_the_release_of_vllm_that_the_package_pins():
    pinned = re.search(r'serve = \["vllm==([\d.]+)"', (DEPLOY.parent / "pyproject.toml").read_text()).group(1)
    base = read("docker-compose.yaml")["services"]["server"]["build"]["args"]["BASE"]
    assert base == f"vllm/vllm-openai:v{pinned}"
    assert f"ARG BASE={base}\n" in (DEPLOY / "Dockerfile").read_text()


def test_without_a_gpu_both_services_take_the_other_image_and_reserve_no_gpu():
    over = read("docker-compose.cpu.yaml")["services"]
    assert over.keys() == {"server", "maskd"}
    for service in over.values():
        assert service["build"]["args"]["EXTRA"] == "serve-cpu"
        assert service["deploy"] is None


def test_alerts_and_the_operators_page_read_metrics_that_are_counted():
    front = prometheus_client.CollectorRegistry()
    FrontMetrics(front)
    counters(front)
    names = {
        sample.name
        for registry in (front, Metrics()._registry)
        for metric in registry.collect()
        for sample in metric.samples
    }
    # those with labels have no sample before they are used
    families = {metric.name for registry in (front, Metrics()._registry) for metric in registry.collect()}
    known = names | {family + end for family in families for end in ("", "_total", "_bucket", "_count", "_sum")}
    told = (DEPLOY / "alerts.yaml").read_text() + (DEPLOY.parent / "docs" / "operator.md").read_text()
    read_here = set(re.findall(r"\blvlm_guard_[a-z_]+", told)) - {ANSWERS}  # a request's field
    assert len(read_here) > 5
    assert read_here <= known
