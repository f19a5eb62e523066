"""What the page says, without the page: answers, verdicts, maps, refusals, and the script that asks the same."""

import base64
import contextlib
import gc
import io

import pytest
import torch
from PIL import Image

from lvlm_guard import guard, methods
from lvlm_guard.embedded.text import CAPTION_PROMPT, question
from lvlm_guard.embedded.world import CLASSES
from lvlm_guard.matching import load_matcher
from lvlm_guard.play import asking, drawing, pictures
from lvlm_guard.play.backend import GREEDY, Asked, offered_methods
from lvlm_guard.play.local import Local
from lvlm_guard.pretrained import ask, load_model, spoken

BALL = question("ball")


@pytest.fixture(scope="module")
def backend() -> Local:
    return Local()


@pytest.fixture(scope="module")
def begun() -> list[pictures.Example]:
    return pictures.examples(embedded=True)


@pytest.fixture(scope="module")
def pair():
    """The model by the package's own front door, beside the page's."""
    return guard(*load_model())


def told(pair, picture, prompt, method) -> str:
    model, processor = pair
    inputs = ask(processor, [[picture]], [prompt])
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False, guard=method)
    return spoken(processor, tokens[0, inputs["input_ids"].shape[1] :]).strip()


def shown(backend, sent, prompt, names, knobs=None, most=64, begun=()):
    """Return all that is shown, and the last of each part."""
    frames = list(asking.asking(backend, sent, prompt, names, knobs or {}, most, begun))
    last = asking.Shown()
    for frame in frames:
        for part in ("cards", "view", "said", "cost", "code"):
            if (value := getattr(frame, part)) is not None and value != []:
                setattr(last, part, value)
    return frames, last


def test_answers_are_what_generate_gives(backend, begun, pair):
    picture = pictures.picture_of(pictures.sent(begun[3]))
    for name, method in [(GREEDY, False), ("agla", methods.AGLA()), ("vote", methods.Vote(objects=tuple(CLASSES)))]:
        *_, last = backend.answers(Asked(picture, CAPTION_PROMPT, name))
        assert last.text == told(pair, picture, CAPTION_PROMPT, method)
        assert (last.trace is None) == (name == GREEDY)


def test_knobs_reach_the_method_and_words_of_a_knob_are_read(backend, begun, pair):
    picture = pictures.picture_of(pictures.sent(begun[3]))
    offered = backend.methods["agla"]
    knobs = asking.changed(offered, {"alpha": 5.0, "beta": 0.05, "share": " .3 ", "frame": "original"})
    assert knobs == {"alpha": 5.0, "beta": 0.05, "share": 0.3, "frame": "original"}
    assert not asking.changed(offered, {"alpha": 2.0, "frame": "auto"})
    *_, last = backend.answers(Asked(picture, CAPTION_PROMPT, "agla", knobs))
    assert last.text == told(pair, picture, CAPTION_PROMPT, methods.AGLA(**knobs))
    assert last.trace["knobs"]["alpha"] == 5.0


def test_an_answer_grows_and_only_its_beginning_is_shown_before_its_end(backend, begun, monkeypatch):
    monkeypatch.setattr("lvlm_guard.play.local.STEP", 0.0)
    picture = pictures.picture_of(pictures.sent(begun[3]))
    looks = [said.text for said in backend.answers(Asked(picture, CAPTION_PROMPT, "focus"))]
    assert len(looks) > 5
    assert all(looks[-1].startswith(look) for look in looks)
    assert sorted(looks, key=len) == looks


def test_an_answer_that_nobody_waits_for_is_not_written_to_its_end(backend, begun, monkeypatch):
    monkeypatch.setattr("lvlm_guard.play.local.STEP", 0.0)
    forwards = []
    handle = backend._model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        picture = pictures.picture_of(pictures.sent(begun[0]))
        growing = backend.answers(Asked(picture, CAPTION_PROMPT, GREEDY, most_tokens=200))
        next(growing)
        growing.close()
        left = len(forwards)
    finally:
        handle.remove()
    *_, whole = backend.answers(Asked(picture, CAPTION_PROMPT, GREEDY, most_tokens=200))
    assert left < len(backend._processor.tokenizer(whole.text)["input_ids"])


def test_overruled_tokens_are_marked_with_what_they_replaced(backend, begun):
    _, last = shown(backend, pictures.sent(begun[0]), BALL, [GREEDY, "agla", "focus"])
    plain, *guarded = last.cards
    assert "yes" in plain
    assert 'class="was"' not in plain
    for card in guarded:
        assert 'no<s class="was">yes</s>' in card
        assert "1 of 2 tokens overruled" in card
    assert last.said.startswith("Done: agla 1 of 2 tokens overruled")


@pytest.mark.slow
def test_the_first_examples_are_those_that_the_rule_gives(pair):
    """The first adversarial questions, one a scene, that greedy gets wrong and three guards get right."""
    from lvlm_guard.embedded.questions import pope_set

    drawn, asked = pope_set("test", 13)
    found: dict[int, str] = {}
    decoders = [methods.AGLA(), methods.Focus(), methods.Vote(objects=tuple(CLASSES))]
    for one in asked:
        if one.mode == "adversarial" and one.scene not in found:
            picture, prompt = Image.fromarray(drawn.image[one.scene]), question(CLASSES[one.asked])
            right = "yes" if one.present else "no"
            if [told(pair, picture, prompt, method) == right for method in (False, *decoders)] == [
                False,
                True,
                True,
                True,
            ]:
                found[one.scene] = prompt
    scenes = list(found.items())
    assert pictures.SCENES[:2] == tuple(scenes[:2])
    assert pictures.SCENES[2] in scenes


def test_verdicts_are_the_matchers_own_on_what_is_named_or_asked_about(backend, begun):
    matcher = load_matcher("embedded")
    picture = pictures.picture_of(pictures.sent(begun[0]))
    p = float(matcher.support(picture, ["is there a ball in the image?"])[0])
    _, last = shown(backend, pictures.sent(begun[0]), BALL, ["agla"])
    assert "Asked about" in last.cards[0]
    assert 'data-object="ball"' in last.cards[0]
    assert f"{p:.2f}" in last.cards[0]
    assert "chip unsupported" in last.cards[0]
    _, last = shown(backend, pictures.sent(begun[3]), CAPTION_PROMPT, [GREEDY])
    assert "It names" in last.cards[0]
    assert all(f'data-object="{name}"' in last.cards[0] for name in ("hotdog", "wineglass", "cup", "cake"))


def test_a_verdict_leads_to_the_map_of_its_claim(backend, begun):
    sent = pictures.sent(begun[0])
    view = asking.object_map(backend, sent, "ball")
    assert "is there a ball in the image" in view
    assert 'class="map"' in view
    assert view != asking.object_map(backend, sent, "person")
    assert "not on the list" in asking.object_map(backend, sent, "<script>")


def test_the_copied_script_runs_and_prints_the_same_answers(backend, begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    upload = pictures.sent(begun[4]) | {"name": "our 'own'.png"}
    (tmp_path / "our 'own'.png").write_bytes(pictures.file_of(upload))
    for sent, known in ((pictures.sent(begun[3]), begun), (upload, ())):
        knobs = {"agla": {"alpha": 1.5}}
        picture = pictures.picture_of(sent)
        want = []
        for name in (GREEDY, "agla", "vote"):
            *_, said = backend.answers(Asked(picture, CAPTION_PROMPT, name, knobs.get(name, {})))
            want.append(f"{name}: {said.text}")
        _, last = shown(backend, sent, CAPTION_PROMPT, [GREEDY, "agla", "vote"], knobs, begun=known)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(last.code, "copied", "exec"), {})
        assert printed.getvalue().splitlines() == want
        assert "alpha=1.5" in last.code


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "question is empty"),
        ({"prompt": "dog " * 1000}, "limit is 2,000"),
        ({"names": []}, "0 methods are chosen"),
        ({"names": ["greedy", "agla", "focus", "vote"]}, "4 methods are chosen"),
        ({"sent": None}, "no picture yet"),
        ({"knobs": {"agla": {"alpha": -1}}}, "alpha"),
    ],
)
def test_what_cannot_be_asked_is_said_in_words(backend, begun, change, words):
    given = {"sent": pictures.sent(begun[0]), "prompt": BALL, "names": [GREEDY, "agla"], "knobs": {}} | change
    _, last = shown(backend, given["sent"], given["prompt"], given["names"], given["knobs"])
    assert words in (last.said + "".join(last.cards))


def test_what_fails_in_one_method_is_said_in_its_place_and_the_others_answer(backend, begun, monkeypatch, capsys):
    def broken(*_, **__):
        raise torch.OutOfMemoryError("no memory <left>")

    monkeypatch.setattr(methods.AGLA, "check", broken)
    _, last = shown(backend, pictures.sent(begun[0]), BALL, [GREEDY, "agla", "focus"])
    plain, agla, focus = last.cards
    assert "no memory &lt;left&gt;" in agla
    assert "yes" in plain
    assert "no" in focus
    assert "no memory <left>" in capsys.readouterr().err


def test_words_that_the_model_does_not_know_are_named(backend, begun):
    _, last = shown(backend, pictures.sent(begun[0]), "is there a heffalump in the image ?", [GREEDY])
    assert "heffalump" in last.said


def test_what_anyone_writes_cannot_become_markup(backend, begun):
    sent = pictures.sent(begun[0])
    frames, _ = shown(backend, sent, "is there a <img src=x onerror=alert(1)> in the image ?", [GREEDY, "vote"])
    assert frames
    for frame in frames:
        assert "<img src=x" not in "".join([*frame.cards, frame.view or "", frame.cost or ""])


def test_only_numbers_switches_and_listed_words_can_be_set_from_the_page(backend):
    """A matcher is a folder to load, a list of objects a file to read: those are the operator's."""
    offered = offered_methods()
    assert next(iter(offered)) == GREEDY
    assert set(offered["vote"].knobs) == {"lam", "beta", "again", "ends", "by_word", "prefetch"}
    assert set(offered["agla"].knobs) == {"alpha", "beta", "frame", "share"}
    assert offered["agla"].choices["frame"] == ("auto", "squashed", "original")
    assert "agla-official" not in offered
    for method in offered.values():
        assert not {"matcher", "objects", "template", "claim"} & set(method.knobs)
    with pytest.raises(KeyError):
        asking.changed(offered["vote"], {"objects": "/etc/passwd"})


def test_the_page_says_that_the_embedded_model_knows_only_its_own_world(backend):
    assert "knows only its own world" in drawing.head(backend)
    backend.embedded = False
    try:
        assert "knows only its own world" not in drawing.head(backend)
    finally:
        backend.embedded = True


def test_the_reports_colours_and_rules_are_the_pages(backend):
    style = drawing.style()
    assert style.startswith(":root {")
    assert ".dark {" in style
    assert style.count("{") == style.count("}")
    assert style.index(".guard { *") < style.index(".token.overruled")


@pytest.mark.slow
def test_a_picture_is_forgotten_with_its_answers(backend):
    def alive() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Image.Image) and thing.size == (97, 61) for thing in gc.get_objects())

    written = io.BytesIO()
    Image.effect_noise((97, 61), 90).convert("RGB").save(written, "PNG")
    sent = {"name": "odd.png", "data": f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"}
    before = alive()
    shown(backend, sent, BALL, ["agla", "focus", "vote"])
    assert alive() == before
    asking.object_map(backend, sent, "ball")
    assert alive() == before
