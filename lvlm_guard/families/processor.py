"""The guarded processor: the same object with one more subclass on top, as for models.

It makes the inputs as before and adds the pictures and the question behind them (`guard_views`), from
which a branch makes its second view if and when a decoding step needs one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from PIL import Image

from lvlm_guard.engine.pictures import VIEWS, Pictures, View
from lvlm_guard.engine.subclass import once_per_class, shown_with
from lvlm_guard.errors import ImageError, TextError, UnsupportedCallError
from lvlm_guard.families.family import Family, flat
from lvlm_guard.families.question import Rendered, Turn
from lvlm_guard.images import any_picture

STATE = "_lvlm_guard"

Texts = str | Sequence[str] | None
"""What `guard_text` takes: one for all prompts or conversations, or one each; None where their own are asked for."""
_TOLD: ContextVar[tuple[list[str] | None, Any]] = ContextVar("lvlm_guard_told", default=(None, None))
"""`guard_text` and `guard_images` of the call of apply_chat_template() that a processor's call is within."""


@dataclass
class ProcessorGuard:
    """What a guarded processor carries."""

    family: Family
    plain: type[Any]
    _turn: Turn | None = None

    def turn(self, processor: Any) -> Turn:
        """Return what the processor's prompts have around a question, read once."""
        self._turn = self._turn or Turn.of(processor, self.plain, self.family.image_token(processor))
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
            guard_text: Texts = None,
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
            if images is None or text is None:
                return super().__call__(images, text, *args, **kwargs)
            if False in (kwargs.get("do_rescale"), (kwargs.get("images_kwargs") or {}).get("do_rescale")):
                raise UnsupportedCallError(
                    "do_rescale=False takes pixel arrays that are scaled already, of which no second view can be "
                    "painted. Pass PIL pictures, and leave do_rescale out."
                )
            state: ProcessorGuard = getattr(self, STATE)
            told = zip((guard_text, guard_images), _TOLD.get(), strict=True)
            stated, given = (outer if own is None else own for own, outer in told)
            prompts = [text] if isinstance(text, str) else list(text)
            rows = state.family.nest([any_picture(image) for image in flat(images)], prompts, self)
            if stated is not None:
                prompts = list(map(Rendered, prompts, _each(stated, len(prompts), "prompts")))
            asked = [state.turn(self).question(prompt) for prompt in prompts]
            made = state.family.process(self, rows, text, args, kwargs)
            made[VIEWS] = Pictures(_views(rows, asked, given), text, args, kwargs, given is not None)
            return made

        @shown_with(base.apply_chat_template)
        def apply_chat_template(
            self, conversation: Any, *args: Any, guard_text: Texts = None, guard_images: Any = None, **kwargs: Any
        ) -> Any:
            """Render conversations as transformers does; the inputs made of them know their questions and pictures.

            Args:
                guard_text: the question, where the last turn's text is not to be matched with the pictures; one for
                    all conversations or one each.
                guard_images: second views of the caller's own, one a picture, where inputs are made.

            Raises:
                TextError: there are more or fewer texts than conversations.
            """
            talks = [conversation] if not conversation or isinstance(conversation[0], dict) else list(conversation)
            if guard_text is None:
                questions = [getattr(self, STATE).turn(self).asked(talk) for talk in talks]
            else:
                questions = _each(guard_text, len(talks), "conversations")
            context = copy_context()
            context.run(_TOLD.set, (questions, guard_images))
            made = context.run(super().apply_chat_template, conversation, *args, **kwargs)
            if isinstance(made, str):
                return Rendered(made, questions[0])
            if isinstance(made, list) and made and isinstance(made[0], str):
                return [Rendered(prompt, question) for prompt, question in zip(made, questions, strict=True)]
            return made

    return Guarded


def _each(stated: str | Sequence[str], number: int, what: str) -> list[str]:
    """Return a text for each of so many prompts or conversations; raises `TextError`."""
    texts = [stated] * number if isinstance(stated, str) else list(stated)
    if len(texts) != number:
        raise TextError(f"guard_text has {len(texts)} texts for {number} {what}: give one each, or one for all.")
    return texts


def _views(rows: list[list[Image.Image]], asked: list[tuple[str, str | None]], given: Any) -> list[list[View]]:
    pictures, own = len(flat(rows)), flat(given)
    if given is not None and len(own) != pictures:
        raise ImageError(f"guard_images has {len(own)} pictures, images has {pictures}: give one second view each.")
    seconds = enumerate(map(any_picture, own) if own else repeat(None))
    return [
        [View(image, text, *next(seconds), note) for image in row]
        for row, (text, note) in zip(rows, asked, strict=True)
    ]
