"""A method and a matcher of another package, really installed, are used by name without a line here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = """
import sys
sys.path[:0] = [{site!r}, {support!r}]
import tiny, torch
from lvlm_guard import guard, methods
assert "loudest" in methods.REGISTRY.names()
model, processor = guard(*tiny.make("llava"), "loudest", token=71)
inputs = processor(images=tiny.picture(1), text=tiny.prompt(processor, "What?"), return_tensors="pt").to(torch.float64)
print(model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, -3:].tolist())
print(methods.Loudest.__module__)
agla = methods.AGLA(matcher="everything", beta=0.0)
out = model.generate(**inputs, guard=agla, max_new_tokens=1, return_dict_in_generate=True)
print(out.guard.knobs["matcher"], out.guard.masks)
import dummy_guard, json
two = processor(images=[tiny.picture(1)] * 2, text=[tiny.prompt(processor, "What?")] * 2, return_tensors="pt")
out = model.generate(**two.to(torch.float64), max_new_tokens=2, do_sample=False, verify=dummy_guard.Lengths())
told = json.loads(json.dumps(out.guard.only([1]).to_dict()))
print(told["steps_seen"], told["lengths"], [step["loudness"] for step in told["steps"][0]], len(told["steps"]))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    where = tmp_path_factory.mktemp("site")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    source = where / "source"
    subprocess.run(["cp", "-r", str(ROOT / "tests/plugin"), str(source)], check=True)
    subprocess.run([*install, "--target", str(where / "site"), str(source)], check=True, capture_output=True)
    return where / "site"


def test_an_installed_package_brings_a_method_and_a_matcher(site):
    code = USE.format(site=str(site), support=str(ROOT / "tests/support"))
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "[71, 71, 71]",
        "dummy_guard",
        "everything-1 1",
        "2 [[1, 2]] [{'row': 1, 'before': 0}, {'row': 1, 'before': 1}] 1",
    ]


def test_without_the_package_its_method_is_unknown():
    from lvlm_guard.methods import REGISTRY

    assert "agla" in REGISTRY.names()
    assert "loudest" not in REGISTRY.names()
