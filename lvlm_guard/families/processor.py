"""The guarded processor: the same object with one more subclass on top, as for models.

It makes the inputs as before and adds the pictures and the question behind them (`guard_views`), from
which a branch makes its second view if and when a decoding step needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from lvlm_guard.engine.call import VIEWS, Pictures, View
from lvlm_guard.engine.subclass import once_per_class, shown_with
from lvlm_guard.errors import ImageError, TextError, UnsupportedCallError
from lvlm_guard.families.family import Family, flat
from lvlm_guard.families.question import Turn
from lvlm_guard.images import Held, load_image

STATE = "_lvlm_guard"
UNMARKED = (
    "No mark of a user's turn was found in the prompt, so the whole of it is matched with the picture. State the "
    "question: processor(..., guard_text=...)."
)
TEXT_ONLY = "{}'s chat template does not read messages in parts, so that the question is not known. Give guard_text=."


class Rendered(str):
    """A prompt that apply_chat_template() has rendered, and the question that it asks.

    The question travels with this one string: another request may render the same text and ask about it otherwise.
    """

    question: str

    @classmethod
    def of(cls, prompt: str, question: str) -> Rendered:
        """Return a prompt with its question."""
        made = cls(prompt)
        made.question = question
        return made


@dataclass
class _Told:
    """What a call of apply_chat_template() knows that the call inside it does not."""

    questions: list[str]
    images: Any


_TOLD: ContextVar[_Told | None] = ContextVar("lvlm_guard_told", default=None)


@dataclass
class ProcessorGuard:
    """What a guarded processor carries."""

    family: Family
    plain: type[Any]
    _turn: Turn | None = None

    def turn(self, processor: Any) -> Turn:
        """Return what the processor's prompts have around a question, read once."""
        if self._turn is None:
            self._turn = Turn.of(processor, self.plain, self.family.image_token(processor))
        return self._turn


@once_per_class
def guarded_class(base: type[Any]) -> type[Any]:
    """Return the guarded subclass of a processor class, always the same one."""

    class Guarded(base):  # type: ignore[misc]  # the base is only known at run time
        @shown_with(base.__call__)
        def __call__(
            self,
            images: Any = None,
            text: Any = None,
            *args: Any,
            guard_text: str | Sequence[str] | None = None,
            guard_images: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Make a model's inputs as transformers does, and `guard_views`, the pictures and questions behind them.

            Args:
                guard_text: the question, where the prompt's own is not to be matched with the pictures; one for all
                    prompts or one each.
                guard_images: second views of the caller's own, one a picture.

            Raises:
                TextError, ImageError: the texts or the pictures do not fit the prompts, or can't be used.
                UnsupportedCallError: the pictures are scaled already (do_rescale=False).
            """
            told = _TOLD.get()
            if isinstance(images, str) and not isinstance(text, str | list | None):
                images, text = text, images  # some scripts still pass (text, images)
            if images is None or text is None:
                return super().__call__(images, text, *args, **kwargs)
            if kwargs.get("do_rescale") is False or (kwargs.get("images_kwargs") or {}).get("do_rescale") is False:
                raise UnsupportedCallError(
                    "do_rescale=False takes pixel arrays that are scaled already, of which no second view can be "
                    "painted. Pass PIL pictures, and leave do_rescale out."
                )
            state: ProcessorGuard = getattr(self, STATE)
            prompts = [text] if isinstance(text, str) else list(text)
            token = state.family.image_token(self)
            templated = bool(getattr(self, "chat_template", None))
            rows = state.family.nest([picture(image) for image in flat(images)], prompts, token, templated)
            given = guard_images if guard_images is not None else told.images if told else None
            turn = state.turn(self)
            views = _views(rows, _texts(guard_text, told, prompts, turn), given)
            if guard_text is None and told is None and templated:
                for row, prompt in zip(views, prompts, strict=True):
                    known = isinstance(prompt, Rendered) or turn.last(prompt) is not None
                    for view in row:
                        view.note = None if known or not view.text else UNMARKED
                        if not known and not turn.reads_parts:
                            view.text, view.note = "", TEXT_ONLY.format(state.plain.__name__)

            made = state.family.process(self, rows, text, args, kwargs)
            made[VIEWS] = Pictures(views, text, args, kwargs, given is not None)
            return made

        @shown_with(base.apply_chat_template)
        def apply_chat_template(
            self,
            conversation: Any,
            *args: Any,
            guard_text: str | Sequence[str] | None = None,
            guard_images: Any = None,
            **kwargs: Any,
        ) -> Any:
            """Render conversations as transformers does; the inputs made of them know their questions and pictures.

            Args:
                guard_text: the question, where the last turn's text is not to be matched with the pictures; one for
                    all conversations or one each.
                guard_images: second views of the caller's own, one a picture, where inputs are made.

            Raises:
                TextError: there are more or fewer texts than conversations.
            """
            state: ProcessorGuard = getattr(self, STATE)
            single = not conversation or isinstance(conversation[0], dict)
            talks = [conversation] if single else list(conversation)
            questions = [state.turn(self).asked(talk) for talk in talks]
            if guard_text is not None:
                questions = _each(guard_text, len(talks), "conversations")
            token = _TOLD.set(_Told(questions, guard_images))
            try:
                made = super().apply_chat_template(conversation, *args, **kwargs)
            finally:
                _TOLD.reset(token)
            if isinstance(made, str):
                return Rendered.of(made, questions[0])
            if isinstance(made, list) and made and isinstance(made[0], str):
                return [Rendered.of(prompt, question) for prompt, question in zip(made, questions, strict=True)]
            return made

    return Guarded


def picture(source: Any) -> Image.Image:
    """Return what a processor takes as a picture (also a URL or base64 text, as transformers does) as RGB."""
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        from transformers.image_utils import load_image as fetch

        try:
            source = fetch(source)
        except (ValueError, OSError) as error:
            raise ImageError(f"The picture {source[:80]!r} can't be fetched: {error}") from error
    elif isinstance(source, Tensor):
        source = source.cpu().numpy()
    return Held.of(load_image(source))


def _texts(stated: str | Sequence[str] | None, told: _Told | None, prompts: list[str], turn: Turn) -> list[str]:
    if stated is None and told is not None:
        stated = told.questions
    if stated is None:
        return [prompt.question if isinstance(prompt, Rendered) else turn.question(prompt) for prompt in prompts]
    return _each(stated, len(prompts), "prompts")


def _each(stated: str | Sequence[str], count: int, what: str) -> list[str]:
    """Return a text for each of so many prompts or conversations; raises `TextError`."""
    texts = [stated] * count if isinstance(stated, str) else list(stated)
    if len(texts) != count:
        raise TextError(f"guard_text has {len(texts)} texts for {count} {what}: give one each, or one for all.")
    return texts


def _views(rows: list[list[Image.Image]], texts: list[str], given: Any) -> list[list[View]]:
    views = [[View(image, text) for image in row] for row, text in zip(rows, texts, strict=True)]
    for index, view in enumerate(view for row in views for view in row):
        view.index = index
    if given is not None:
        everything = [view for row in views for view in row]
        locals_ = [picture(image) for image in flat(given)]
        if len(locals_) != len(everything):
            raise ImageError(
                f"guard_images has {len(locals_)} pictures, images has {len(everything)}: give one second view each."
            )
        for view, local in zip(everything, locals_, strict=True):
            view.local = local
    return views
