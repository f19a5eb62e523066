"""A picture is encoded once, whoever asks about it: AGLA's map, vote's claims, the verifier, a second question."""

import pytest
import tiny
import torch
from asking import RUN
from matchers import Brightness
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lvlm_guard import guard, methods
from lvlm_guard.embedded import MODEL, world
from lvlm_guard.matching import BlipITM, blip_itm, load_matcher
from lvlm_guard.pretrained import ask

NOUNS = tuple(world.CLASSES)
VOTE = methods.Vote(objects=NOUNS, beta=0.01)


@pytest.fixture(scope="module")
def pair():
    return guard(AutoModelForImageTextToText.from_pretrained(MODEL).eval(), AutoProcessor.from_pretrained(MODEL))


@pytest.fixture
def tower(pair):
    """The pictures in each pass of the matcher's vision tower."""
    matcher = load_matcher(None, model=pair[0])
    assert isinstance(matcher, BlipITM)
    matcher.forget()
    passes: list[int] = []
    hook = matcher.model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(len(next(iter([*args, *kwargs.values()])))), with_kwargs=True
    )
    yield passes
    hook.remove()


def pictures(count):
    found = world.scenes("val", count)
    return [Image.fromarray(found.image[i]) for i in range(count)]


def answered(pair, images, prompt, guard, **more):
    inputs = ask(pair[1], [[image] for image in images], [prompt] * len(images))
    options = {"max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True, **more}
    return pair[0].generate(**inputs, guard=guard, **options).guard


@pytest.mark.parametrize("method", [methods.AGLA(beta=0.01), VOTE], ids=["map", "claims"])
def test_what_a_method_asks_and_verdicts_of_one_call_share_one_pass_of_the_tower(pair, tower, method):
    trace = answered(pair, pictures(1), world.CAPTION_PROMPT, method, verify=True)
    assert trace.matches or trace.extra["claims"]
    assert trace.extra["verdicts"][0]
    assert tower == [1]


def test_other_methods_and_questions_about_a_picture_need_the_tower_no_more(pair, tower):
    (image,) = pictures(1)
    for prompt, guard_ in (
        (world.question("dog"), methods.AGLA(beta=0)),
        (world.question("cat"), methods.AGLA(beta=0)),
        (world.CAPTION_PROMPT, methods.Vote(objects=NOUNS)),
    ):
        trace = answered(pair, [image.copy()], prompt, guard_)
        assert trace.matches or trace.extra["claims"]
    assert tower == [1]


def test_a_batch_of_more_pictures_than_are_remembered_is_encoded_once_in_a_call(pair, tower, monkeypatch):
    monkeypatch.setattr(blip_itm, "STATE_BYTES", 1)
    monkeypatch.setattr(load_matcher(None, model=pair[0])._seen, "capacity", 1)
    trace = answered(pair, pictures(6), world.CAPTION_PROMPT, VOTE, verify=True)
    assert trace.extra["claims"] > 6
    assert sum(tower) == 6


def test_the_second_view_of_a_rendered_chat_processes_the_picture_and_not_the_text_again(monkeypatch):
    model, processor = guard(*tiny.make("llava", scale=5.0), methods.AGLA(matcher=Brightness(), beta=0.0))
    content = [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(torch.float64)
    monkeypatch.setattr(type(processor.tokenizer), "__call__", None)
    out = model.generate(**inputs, **RUN, return_dict_in_generate=True)
    assert out.guard.masks == 1
