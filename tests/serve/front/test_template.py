"""Who begins a prompt is found as transformers finds it, and said in every request that does not say otherwise."""

from __future__ import annotations

import json

import pytest
import tiny

from lvlm_guard.pretrained import load_model
from lvlm_guard.serve.front.requests import asked
from lvlm_guard.serve.front.settings import FrontSettings
from lvlm_guard.serve.launch.server import special_tokens

TALK = [{"role": "user", "content": [{"type": "text", "text": "is there a dog ?"}]}]


@pytest.mark.parametrize("family", [*tiny.TEMPLATED, "embedded"])
@pytest.mark.parametrize("first", ["", "{{ bos_token }}"])
def test_the_prompt_has_the_first_token_once_as_transformers_writes_it(family: str, first: str) -> None:
    processor = load_model("embedded")[1] if family == "embedded" else tiny.make(family)[1]
    template = first + processor.chat_template
    expected = processor.apply_chat_template(
        TALK, tokenize=True, return_dict=True, add_generation_prompt=True, chat_template=template
    )["input_ids"]
    text = processor.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True, chat_template=template)
    added = special_tokens(processor, template)
    said = processor.tokenizer(text, add_special_tokens=added)["input_ids"]
    assert [said] == expected
    assert special_tokens(processor) == special_tokens(processor, processor.chat_template)


@pytest.mark.parametrize("model", ["tiny", "tiny-agla"])
@pytest.mark.parametrize("served", [True, False])
def test_what_a_request_says_goes_before_what_the_server_found(model: str, served: bool) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    body = {"model": model, "messages": [{"role": "user", "content": [picture, {"type": "text", "text": "?"}]}]}
    rules = FrontSettings(("tiny",), ("agla",), maskd_url="http://127.0.0.1:1", special_tokens=served)

    def of(**more: object) -> object:
        read = asked(json.dumps(body | more).encode(), rules)
        return read.body.get("add_special_tokens")

    assert of() is (True if served else None)
    assert of(add_special_tokens=None) is (True if served else None)
    assert of(add_special_tokens=False) is False
    assert of(add_special_tokens=True) is True
