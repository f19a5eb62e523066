"""The insides of vLLM that the twin reaches into are those that it was written for: the first thing an upgrade asks."""

from __future__ import annotations

import ast
import inspect
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import twin_engine

os.environ |= twin_engine.QUIET  # read when vllm is imported

from lvlm_guard.serve import logits
from lvlm_guard.serve.engine import insides
from lvlm_guard.serve.engine.plugin import FAMILIES, TWINS, register

ENGINE = Path(insides.__file__).parent
SIGNATURES: dict[Any, str] = insides.SIGNATURES | logits.SIGNATURES


def lacking(function: Any, wanted: str) -> list[str]:
    """The parameters that a function lacks, or has in another order."""
    has = list(inspect.signature(function).parameters)
    places = [has.index(name) if name in has else -1 for name in wanted.split()]
    missing = [name for name, place in zip(wanted.split(), places, strict=True) if place < 0]
    return missing or ([] if places == sorted(places) else has)


@pytest.mark.parametrize(("owner", "method"), SIGNATURES, ids=lambda part: getattr(part, "__name__", part))
def test_a_method_has_the_parameters_that_are_passed_or_taken(owner: Any, method: str) -> None:
    assert lacking(getattr(owner, method), SIGNATURES[owner, method]) == []


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_model_class_is_called_as_the_twin_calls_it(architecture: str) -> None:
    base = insides.ModelRegistry.models[architecture].load_model_cls()
    for method, wanted in insides.MODEL.items():
        assert lacking(getattr(base, method), wanted) == [], method
    factory = base._processor_factory
    assert all(callable(part) for part in (factory.processor, factory.info, factory.dummy_inputs))


def test_the_entry_point_makes_every_twin_known_and_each_is_its_base() -> None:
    register()
    register()
    for architecture, twin in zip(FAMILIES, TWINS, strict=True):
        made = insides.ModelRegistry.models[twin].load_model_cls()
        base = insides.ModelRegistry.models[architecture].load_model_cls()
        assert issubclass(made, base)
        assert made.__name__ == twin
        assert made is insides.ModelRegistry.models[twin].load_model_cls()
        assert made._processor_factory.info is base._processor_factory.info


def test_an_attention_layer_says_whether_it_reads_pictures_both_ways() -> None:
    assert "use_mm_prefix" in inspect.getsource(insides.Attention.__init__)
    assert "attn_backend" in inspect.getsource(insides.Attention.__init__)


def test_no_other_file_of_the_engine_names_vllm() -> None:
    naming = set()
    for file in ENGINE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom) and any(name.split(".")[0] == "vllm" for name in names):
                naming.add(file.name)
    assert naming == {"insides.py"}
