"""The page: its parts, and which of them an event changes. Everything that it shows is made in `asking`, `drawing`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import gradio as gr

from lvlm_guard.errors import GuardError
from lvlm_guard.methods import REGISTRY
from lvlm_guard.play import asking, drawing, pictures
from lvlm_guard.play.backend import GREEDY, Asked, Backend, Offered

USUAL = (GREEDY, "agla", "focus", "vote")
"""Of these the first `asking.MOST_METHODS` that there are, are chosen to begin with."""

WAITING = 32
"""People who may wait for an answer; whoever comes later is told to try again."""

_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_MODEL: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    **_PRIVATE,
}  # one model, one call at a time
_EMPTY = "The picture shows up here, and over it where the matcher looked."


class Page:
    """The page of one backend.

    Args:
        backend: who answers.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.begun = pictures.examples(backend.embedded)
        with gr.Blocks(analytics_enabled=False, title="lvlm-guard playground", fill_width=True) as self.blocks:
            _html(drawing.head(backend))
            with gr.Row(equal_height=False):
                with gr.Column(scale=3, min_width=320):
                    self._picture_side()
                with gr.Column(scale=5, min_width=320):
                    self._question_side()
            self.said = _html(self._told("Take a picture, ask, compare."))
            with gr.Row(equal_height=True, elem_id="answers"):
                # always there: what comes while a part is being shown for the first time is lost
                self.cards = [_html("", "card", elem_classes="answer") for _ in range(asking.MOST_METHODS)]
            self.key = _html(drawing.key(), visible=False)
            with gr.Accordion("What it cost", open=False, visible=False) as self.cost_place:
                self.cost = _html("")
            with gr.Accordion("Copy as Python", open=False, visible=False) as self.code_place:
                self.code = gr.Textbox(
                    label="The same, without this page", lines=12, max_lines=40, buttons=["copy"], elem_id="code"
                )
            self._events()
        self.blocks.queue(max_size=WAITING, default_concurrency_limit=4, api_open=False)

    def _picture_side(self) -> None:
        self.well = gr.HTML(
            None,
            html_template=drawing.well(),
            js_on_load=drawing.script("well"),
            most_bytes=pictures.MOST_BYTES,
            apply_default_css=False,
            elem_id="well",
        )
        self.view = _html(drawing.nothing(_EMPTY), "viewer", elem_id="view")

    def _question_side(self) -> None:
        self.gallery = _html(drawing.gallery(self.begun), "gallery", elem_id="gallery")
        self.question = gr.Textbox(
            label="Your question", placeholder="is there a dog in the image ?", max_length=asking.MOST_TEXT, lines=1
        )
        offered = self.backend.methods
        usual = [name for name in USUAL if name in offered][: asking.MOST_METHODS]
        self.methods = gr.CheckboxGroup(
            list(offered), value=usual, label=f"Methods to compare, at most {asking.MOST_METHODS}", elem_id="methods"
        )
        with gr.Accordion("Knobs", open=False, elem_id="knobs"):
            self.most_tokens = gr.Slider(1, asking.MOST_TOKENS, value=64, step=1, label="Longest answer, in tokens")
            self.fields: dict[tuple[str, str], Any] = {}
            for name, method in offered.items():
                if method.knobs:
                    self._knobs(name, method)
        with gr.Row(elem_id="ask"):
            self.ask = gr.Button("Ask", variant="primary", scale=3, min_width=120)
            self.stop = gr.Button("Stop", scale=1, min_width=80, interactive=False)

    def _knobs(self, name: str, method: Offered) -> None:
        told = knob_help(name)
        # hidden by a rule of the style where its method is not chosen
        with gr.Group(elem_id=f"knobs-{name}"), gr.Row():
            for knob, default in method.knobs.items():
                more: dict[str, Any] = {"label": f"{name} {knob}", "info": told.get(knob), "min_width": 150}
                if knob in method.choices:
                    part = gr.Dropdown(list(method.choices[knob]), value=default, **more)
                elif isinstance(default, bool):
                    part = gr.Checkbox(value=default, **more)
                elif default is None:
                    part = gr.Textbox(placeholder="not set", max_length=20, **more)
                else:
                    part = gr.Number(value=default, step=1 if isinstance(default, int) else 0.05, **more)
                self.fields[name, knob] = part

    def _events(self) -> None:
        shown = [self.well, self.view, self.said]
        self.well.upload(self._taken, self.well, shown, show_progress="hidden", **_PRIVATE)
        self.well.select(self._too_large, None, [self.view, self.said], show_progress="hidden", **_PRIVATE)
        self.gallery.click(self._begun, None, [*shown, self.question], show_progress="hidden", **_PRIVATE)
        inputs = [self.well, self.question, self.methods, self.most_tokens, *self.fields.values()]
        outputs = [*self.cards, self.view, self.said, self.cost, self.cost_place, self.code, self.code_place]
        outputs += [self.key, self.stop]
        asked = gr.on(
            [self.ask.click, self.question.submit],
            self._asked,
            inputs,
            outputs,
            show_progress="minimal",
            show_progress_on=[self.said],
            **_MODEL,
        )
        self.stop.click(
            self._stopped, None, [self.said, self.stop], cancels=[asked], show_progress="hidden", **_PRIVATE
        )
        for card in self.cards:
            card.click(
                self._pressed, [self.well, self.question], [self.view, self.said], show_progress="hidden", **_PRIVATE
            )
        self.view.click(
            self._pressed, [self.well, self.question], [self.view, self.said], show_progress="hidden", **_PRIVATE
        )

    def _told(self, words: str) -> str:
        return drawing.guard(words, class_="said", role="status", aria_live="polite")

    def _taken(self, sent: Any) -> tuple[Any, str, str]:
        from lvlm_guard.images import notes

        try:
            picture = pictures.picture_of(sent)
        except GuardError as error:
            return None, drawing.refused(str(error)), self._told("The picture was not taken.")
        name, size = pictures.name_of(sent), f"{picture.width} × {picture.height}"
        return gr.skip(), drawing.viewer(picture), self._told("; ".join([f"{name}, {size}", *notes(picture)]) + ".")

    def _too_large(self, event: gr.EventData) -> tuple[str, str]:
        words = str(event._data.get("words", ""))[:400]
        return drawing.refused(words), self._told("The picture was not taken.")

    def _begun(self, event: gr.EventData) -> tuple[Any, str, str, str]:
        number = event._data.get("example")
        one = self.begun[number if number in range(len(self.begun)) else 0]
        sent = pictures.sent(one)
        return sent, drawing.viewer(pictures.picture_of(sent)), self._told(f"{one.shows.capitalize()}."), one.question

    def _asked(self, sent: Any, prompt: Any, methods: list[str], most: float, *values: Any) -> Iterator[dict[Any, Any]]:
        knobs: dict[str, dict[str, Any]] = {}
        for (name, knob), value in zip(self.fields, values, strict=True):
            knobs.setdefault(name, {})[knob] = value
        shown_before: list[Any] = [None] * len(self.cards)
        for now in asking.asking(self.backend, sent, prompt, methods, knobs, most, self.begun):
            told: dict[Any, Any] = {}
            for index, card in enumerate(self.cards if now.cards else ()):
                content = now.cards[index] if index < len(now.cards) else ""
                if content != shown_before[index]:
                    shown_before[index] = content
                    told[card] = content
            if now.view is not None:
                told[self.view] = now.view
            if now.said is not None:
                told[self.said] = self._told(now.said)
            if now.cost is not None:
                told |= {
                    self.cost: drawing.guard(now.cost) if now.cost else "",
                    self.cost_place: gr.update(visible=bool(now.cost)),
                }
            if now.code is not None:
                told |= {self.code: now.code, self.code_place: gr.update(visible=bool(now.code))}
            if now.running is not None:
                told |= {self.key: gr.update(visible=True), self.stop: gr.update(interactive=now.running)}
            if told:
                yield told

    def _stopped(self) -> tuple[str, Any]:
        return self._told("Stopped."), gr.update(interactive=False)

    def _pressed(self, sent: Any, prompt: Any, event: gr.EventData) -> tuple[Any, str]:
        name = str(event._data.get("object", ""))
        if name:
            return asking.object_map(self.backend, sent, name), self._told(
                f"The map shows where it looked for “{name}”."
            )
        try:
            view = asking.question_map(self.backend, Asked(pictures.picture_of(sent), str(prompt or "")))
        except GuardError as error:
            view = drawing.refused(str(error))
        return view or gr.skip(), self._told("The map shows what matters to the question.")


def _html(content: str, script: str | None = None, **more: Any) -> Any:
    return gr.HTML(content, js_on_load=drawing.script(script) if script else None, apply_default_css=False, **more)


def knob_help(method: str) -> dict[str, str]:
    """Return the first sentence of what a method's docstring says of each knob."""
    try:
        text = inspect.getdoc(REGISTRY.get(method)) or ""
    except GuardError:
        return {}
    told = re.findall(r"^    (\w+): (.*?)(?=^    \w+: |^\S|\Z)", text, re.DOTALL | re.MULTILINE)
    return {knob: re.split(r"[.;](?:\s|$)", " ".join(said.split()))[0] + "." for knob, said in told}
