"""The pictures and questions behind a batch of inputs, which the guarded processor hands to generate()."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

from lvlm_guard.errors import MissingViewError

if TYPE_CHECKING:
    from PIL.Image import Image

VIEWS = "guard_views"  # the key under which a guarded processor hands its pictures to generate()


@dataclass
class View:
    """One picture of a request. A call writes nothing on it: what a method made of it is in `GuardTrace.views`."""

    image: Image  # the picture as the user gave it, RGB
    text: str  # the matching text, or "" where none was found
    index: int = 0  # its place among the pictures of the call
    local: Image | None = None  # the caller's own second view (`guard_images`); None where a method is to make one
    note: str | None = None  # what a reader of the trace should know of the text

    @property
    def own(self) -> Image:
        """The caller's own second view; raises `MissingViewError` where he gave none."""
        if self.local is None:
            raise MissingViewError(
                f"Picture {self.index} came without a second view, while others have one of the caller's own "
                "(guard_images). Give one for each picture, or none."
            )
        return self.local


@dataclass(eq=False)
class Pictures:
    """The pictures and questions behind a batch of inputs; travels with the inputs as `guard_views`.

    It holds no second view yet: those are made at the first decoding step that needs them. It is plain
    data, so that a DataLoader's workers can make inputs.
    """

    rows: list[list[View]]  # for each request its views, in the order of the prompt's placeholders
    text: str | list[str] = ""  # the prompts, as the processor got them
    args: tuple[Any, ...] = ()  # the processor's further arguments by position
    kwargs: dict[str, Any] = field(default_factory=dict)  # and by name
    given: bool = False  # whether the caller brought the second views (`guard_images=`)

    @classmethod
    def of(cls, found: Any) -> Pictures:
        """Return pictures as they are, or those of several inputs that a pipeline or a DataLoader put in a list.

        Raises:
            MissingViewError: it is something else.
        """
        if isinstance(found, cls):
            return found
        parts = list(found) if isinstance(found, list | tuple) else []
        if not parts or not all(isinstance(part, cls) for part in parts):
            raise MissingViewError(
                f"guard_views is a {type(found).__name__}, not what the guarded processor gave. Pass on all that it "
                "returns, unchanged: model.generate(**inputs)."
            )
        texts = [text for part in parts for text in part.prompts()]
        places = count()
        rows = [[replace(view, index=next(places)) for view in row] for part in parts for row in part.rows]
        given = any(part.given for part in parts)
        if given and not all(part.given for part in parts):
            raise MissingViewError(
                "Some of these inputs have second views of the caller's own (guard_images), some have none. Give them "
                "for all, or for none."
            )
        return cls(rows, texts, parts[0].args, parts[0].kwargs | {"padding": True}, given)

    def only(self, requests: list[int]) -> Pictures:
        """Return the pictures of some requests."""
        text = self.text if isinstance(self.text, str) else [self.text[request] for request in requests]
        return replace(self, rows=[self.rows[request] for request in requests], text=text)

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self) -> list[str]:
        """Return the prompts, one a request."""
        return [self.text] if isinstance(self.text, str) else self.text

    def views(self) -> list[View]:
        """Return every picture's view, request after request."""
        return [view for row in self.rows for view in row]

    def images(self) -> list[list[Image]]:
        """Return the pictures themselves, of each request."""
        return [[view.image for view in row] for row in self.rows]

    def to(self, *_: Any, **__: Any) -> Pictures:
        """Return itself: `{k: v.to(device) for k, v in inputs.items()}` is how many scripts move inputs."""
        return self
