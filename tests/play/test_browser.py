"""The playground as people use it: in a real browser, against a real process."""

from __future__ import annotations

import base64
import io
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from openai_endpoint import OpenAIEndpoint, load
from PIL import Image

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="make test-play has it")
expect = pytest.importorskip("playwright.sync_api", reason="make test-play has it").expect

from lvlm_guard.embedded.world import scenes  # noqa: E402

WAIT = 60_000  # ms; other work may share the machine
expect.set_options(timeout=WAIT)


class Visitor:
    """Someone before the page, in a browser profile of their own."""

    def __init__(self, browser, url: str, **more) -> None:
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | more))
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(url)
        self.page.locator("#gallery button").first.wait_for()

    def begin(self, number: int) -> None:
        self.page.locator("#gallery button").nth(number).click()
        self.page.locator("#view img.base").wait_for()

    def choose(self, *methods: str) -> None:
        group = self.page.get_by_role("group", name="Methods to compare")
        group.get_by_role("checkbox").first.wait_for()
        for box in group.get_by_role("checkbox").all():
            box.set_checked(box.get_attribute("name") in methods)

    def upload(self, file: Path) -> None:
        self.page.locator("#picture-file").set_input_files(file)

    def question(self, text: str) -> None:
        self.page.get_by_label("Your question").fill(text)

    def knob(self, label: str, value: str) -> None:
        """Type a knob's value; a field that has only just been drawn is still filled with its default by gradio."""
        field = self.page.get_by_label(label)
        for _ in range(20):
            field.fill(value)
            self.page.wait_for_timeout(300)
            if field.input_value() == value:
                return
        raise AssertionError(f"{label} does not keep {value!r}")

    def ask(self) -> None:
        self.page.get_by_role("button", name="Ask", exact=True).click()

    def done(self) -> None:
        expect(self.status).to_contain_text("Done")

    @property
    def status(self):
        return self.page.locator(".guard.said")  # gradio has one of its own

    def said(self) -> list[str]:
        """The answers, overruled tokens and their numbers left out."""
        script = """cards => cards.map(card => {
            const strip = card.querySelector('.tokens').cloneNode(true);
            strip.querySelectorAll('.was, .tip').forEach(part => part.remove());
            return strip.innerText.trim();
        })"""
        return self.page.locator(".guard.card").evaluate_all(script)


@pytest.fixture
def visit(browser, playground):
    visitors = []

    def open_page(**more) -> Visitor:
        visitors.append(Visitor(browser, playground.url, **more))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.context.close()


def scene(number: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(scenes("test", number + 1).image[number]).save(written, "PNG")
    return written.getvalue()


def in_file(data: bytes, folder: Path, name: str = "scene.png") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_an_uploaded_picture_is_asked_about_and_the_answers_stand_side_by_side(visit, tmp_path):
    someone = visit()
    someone.upload(in_file(scene(12), tmp_path, "my train.png"))
    expect(someone.status).to_contain_text("my train.png, 96 × 96")
    someone.question("is there a train in the image ?")
    someone.choose("greedy", "agla", "vote")
    someone.ask()
    someone.done()
    assert someone.said() == ["no", "yes", "yes"]
    cards = someone.page.locator(".guard.card")
    tops = [card.bounding_box()["y"] for card in cards.all()]
    assert len(set(tops)) == 1
    assert cards.nth(1).locator(".token.overruled .was").first.inner_text() == "no"
    assert "forwards" in cards.nth(1).locator(".cost").inner_text()
    assert someone.errors == []


def test_an_answer_is_seen_as_it_grows(visit):
    someone = visit()
    someone.page.evaluate("""() => { window.seen = [];
        new MutationObserver(() => {
            const growing = document.querySelector('.card.growing .tokens');
            if (growing) window.seen.push(growing.innerText);
        }).observe(document.querySelector('#answers'), {subtree: true, childList: true, characterData: true}); }""")
    someone.begin(3)
    for _ in range(5):  # the embedded model may be done within one look
        someone.ask()
        someone.done()
        if someone.page.evaluate("window.seen.length"):
            break
    seen = [text.rstrip("▍") for text in someone.page.evaluate("window.seen")]
    assert seen
    assert all(text.startswith("the") for text in seen)


def test_stop_ends_an_answer_in_the_middle_and_the_next_question_is_answered(browser, open_playground, tmp_path):
    def slowly(request, reply):
        reply.pace = 0.5 * (request.number == 0)
        return reply

    with (
        OpenAIEndpoint(load()) as server,
        server.faulty(slowly),
        open_playground(tmp_path, "--server", server.url) as slow,
    ):
        someone = Visitor(browser, slow.url)
        someone.begin(3)
        someone.choose("greedy")
        someone.ask()
        expect(someone.page.locator(".card.growing .tokens")).to_contain_text("the")
        with someone.page.expect_response("**/reset"):  # gradio takes no click before
            someone.page.get_by_role("button", name="Stop").click()
        expect(someone.status).to_contain_text("Stopped")
        expect(someone.page.get_by_role("button", name="Stop")).to_be_disabled()
        someone.ask()
        someone.done()
        assert someone.said()[0].startswith("the image shows")
        someone.context.close()
        for _ in range(100):  # the server sees it at its next word
            if server.given_up:
                break
            time.sleep(0.1)
        assert server.given_up == 1
        assert len(server.seen) == 2


def test_a_press_on_a_verdict_shows_where_the_matcher_looked_and_the_slider_sets_how_much_of_it(visit):
    someone = visit()
    someone.begin(3)
    someone.ask()
    someone.done()
    over = someone.page.locator("#view img.map")
    before = over.get_attribute("src")
    someone.page.locator(".guard.card").first.get_by_role("button", name="cup").click()
    expect(someone.page.locator("#view .note")).to_contain_text("Where it looked for “cup”")
    assert over.get_attribute("src") != before
    slider = someone.page.get_by_label("How strongly the map covers the picture")
    slider.fill("20")
    expect(over).to_have_css("opacity", "0.2")
    someone.page.get_by_role("button", name="Back to the question").click()
    expect(someone.page.locator("#view .note")).to_contain_text("What matters to the question")
    expect(over).to_have_css("opacity", "0.2")
    assert over.get_attribute("src") == before
    assert someone.errors == []


def test_knobs_and_the_script_follow_what_was_chosen(visit):
    someone = visit()
    someone.begin(0)
    someone.choose("greedy", "agla")
    someone.page.get_by_role("button", name="Knobs").click()
    expect(someone.page.get_by_label("focus share")).to_be_hidden()
    someone.knob("agla alpha", "0")
    someone.ask()
    someone.done()
    assert someone.said() == ["yes", "yes"]  # a branch that weighs nothing changes nothing
    someone.page.get_by_role("button", name="Copy as Python").click()
    code = someone.page.locator("#code textarea").input_value()
    assert "methods.AGLA(alpha=0.0)" in code
    compile(code, "copied", "exec")


def test_it_works_without_a_mouse(visit):
    someone = visit()
    keys, page = someone.page.keyboard, someone.page
    page.locator("#gallery button").first.focus()
    keys.press("Enter")
    expect(page.get_by_label("Your question")).to_have_value("is there a ball in the image ?")
    page.get_by_label("Your question").focus()
    keys.press("Enter")
    someone.done()
    token = page.locator(".guard.card").nth(1).locator(".token.overruled").first
    token.focus()
    expect(token.locator(".tip")).to_be_visible()
    expect(token.locator(".tip")).to_contain_text("The plain model would have said “yes”")
    chip = page.locator(".guard.card").nth(1).get_by_role("button", name="ball")
    chip.focus()
    keys.press("Enter")
    expect(page.locator("#view .note")).to_contain_text("Where it looked for “ball”")
    expect(chip).to_have_attribute("aria-pressed", "true")
    reached = set()
    page.evaluate("document.activeElement.blur()")
    for _ in range(40):
        keys.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.innerText || 'field'"))
    assert {"picture-file", "Ask"} <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(visit, scheme):
    someone = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme, has_touch=True, is_mobile=True)
    someone.begin(0)
    someone.ask()
    someone.done()
    wide, seen = someone.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen == 390
    boxes = [card.bounding_box() for card in someone.page.locator(".guard.card").all()]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["width"] > 250 for box in boxes)
    assert [box["y"] for box in boxes] == sorted({box["y"] for box in boxes})  # below each other
    paper = someone.page.evaluate("getComputedStyle(document.querySelector('.guard.card')).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 200) == (scheme == "dark")


def test_a_picture_of_20000_by_20000_is_refused_in_words(visit, tmp_path):
    someone = visit()
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png", compress_level=1)
    someone.upload(tmp_path / "huge.png")
    expect(someone.page.get_by_role("alert")).to_contain_text("huge.png has far too many pixels")
    expect(someone.page.get_by_role("alert")).to_contain_text("40,000,000")
    someone.question("is there a dog in the image ?")
    someone.ask()
    expect(someone.status).to_contain_text("There is no picture yet")


def test_a_file_that_is_too_large_does_not_leave_the_browser(visit, tmp_path):
    someone = visit()
    before = len(someone.requests)
    someone.upload(in_file(b"\x89PNG" + bytes((21 << 20) - 4), tmp_path, "large.png"))
    expect(someone.page.get_by_role("alert")).to_contain_text("large.png has 21.0 MiB; the limit is 20 MiB")
    assert len(someone.requests) - before <= 4  # the words' own event


def test_a_picture_is_pasted_and_dropped_too(visit):
    someone = visit()
    data = base64.b64encode(scene(0)).decode()
    make = """const file = new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type: 'image/png'});
        const carried = new DataTransfer(); carried.items.add(file);"""
    someone.page.evaluate(
        "([data, name]) => {"
        + make
        + "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: carried})); }",
        [data, "pasted.png"],
    )
    expect(someone.status).to_contain_text("pasted.png, 96 × 96")
    someone.page.evaluate(
        "([data, name]) => {"
        + make
        + "const drop = new DragEvent('drop', {dataTransfer: carried, bubbles: true});"
        + "document.querySelector('#well .drop').dispatchEvent(drop); }",
        [data, "dropped.png"],
    )
    expect(someone.status).to_contain_text("dropped.png, 96 × 96")


def test_two_people_ask_at_once_and_each_gets_their_own_answers(visit):
    one, other = visit(), visit()
    one.begin(0)
    other.begin(2)
    for someone in (one, other):
        someone.choose("greedy", "agla", "focus")
    one.ask()
    other.ask()
    one.done()
    other.done()
    assert one.said() == ["yes", "no", "no"]
    assert other.said() == ["no", "yes", "yes"]
    assert "ball" in one.page.locator(".chip").first.inner_text()
    assert "train" in other.page.locator(".chip").first.inner_text()


def test_nothing_is_kept_on_disk_and_nobody_else_is_called(visit, playground, tmp_path):
    someone = visit()
    someone.begin(0)
    someone.ask()
    someone.done()
    os.truncate(playground.written, 0)  # what packages write when they are first used is no picture of anyone's
    someone.upload(in_file(scene(5), tmp_path))
    expect(someone.status).to_contain_text("96 × 96")
    someone.question("is there a car in the image ?")
    someone.ask()
    someone.done()
    assert playground.written.read_text().splitlines() == []
    assert playground.files() == []
    connected = playground.connected.read_text().splitlines()
    assert [address for address in connected if "127.0.0.1" not in address and "::1" not in address] == []
    hosts = {urlsplit(url).netloc for url in someone.requests if not url.startswith(("data:", "blob:"))}
    assert hosts == {urlsplit(playground.url).netloc}
    tried = someone.page.request.post(
        f"{playground.url}/gradio_api/upload",
        multipart={"files": {"name": "a.png", "mimeType": "image/png", "buffer": scene(0)}},
    )
    assert tried.status == 404
    assert playground.files() == []


def test_it_says_that_the_embedded_model_knows_only_its_own_world(visit):
    expect(visit().page.locator("body")).to_contain_text("The embedded model knows only its own world")
