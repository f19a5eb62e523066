"""What a reader sees of a guarded pair: transformers' arguments and documentation, and ours before them."""

import inspect
import pydoc
import types

import pytest
import tiny
from transformers import GenerationMixin

from lvlm_guard import guard, unguard

METHODS = {
    "generate": (0, ["guard", "guard_views", "guard_execution", "guard_steps", "verify"]),
    "__call__": (1, ["guard_text", "guard_images"]),
    "apply_chat_template": (1, ["guard_text", "guard_images"]),
}


def before(thing, name):
    # InstructBLIP's own generate() has other arguments, but a guarded one decodes by the one of all models
    return types.MethodType(GenerationMixin.generate, thing) if name == "generate" else getattr(thing, name)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_the_signature_holds_transformers_arguments_and_ours(family, name):
    which, ours = METHODS[name]
    pair = tiny.make(family)
    thing = pair[which]
    plain = before(thing, name)
    guard(*pair)
    shown = inspect.signature(getattr(thing, name))
    assert [p for p in shown.parameters if p not in ours] == list(inspect.signature(plain).parameters)
    assert [p.name for p in shown.parameters.values() if p.kind is p.KEYWORD_ONLY] == ours
    assert shown.return_annotation == inspect.signature(plain).return_annotation
    shown.bind(*([] if which == 0 else [None]), **dict.fromkeys(ours))
    unguard(thing)
    assert not set(ours) & set(inspect.signature(getattr(thing, name)).parameters)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_help_tells_our_arguments_and_then_all_that_transformers_tells(family, name):
    which, ours = METHODS[name]
    pair = tiny.make(family)
    plain = inspect.getdoc(before(pair[which], name)) or ""
    method = getattr(guard(*pair)[which], name)
    doc = inspect.getdoc(method)
    assert doc.endswith(plain)
    assert all(f"{argument}:" in doc[: len(doc) - len(plain)] for argument in ours)
    text = pydoc.plain(pydoc.render_doc(method))
    assert all(f"{argument}" in text for argument in ours)
