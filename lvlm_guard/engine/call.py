"""What one `generate()` call is about: its requests, their pictures and questions, and the image tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_guard.engine.steering import Decoder
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import MissingViewError, TextError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from lvlm_guard.engine.pictures import Pictures, View
    from lvlm_guard.engine.session import Session
    from lvlm_guard.engine.trace import GuardTrace
    from lvlm_guard.families.family import Family

OF_TEXT = {"add_special_tokens", "max_length", "padding", "padding_side", "return_tensors", "truncation"}
"""Settings of a processor that do not touch its pictures."""

ACTIVE: ContextVar[tuple[Any, Session | None]] = ContextVar("lvlm_guard_session", default=(None, None))
"""The model that a generate() call of this thread is about, and its guarded call; None: its calls are plain here."""


@contextmanager
def within(model: Any, session: Session | None) -> Iterator[None]:
    """Guard the calls of a model by a session, or leave them plain."""
    token = ACTIVE.set((model, session))
    try:
        yield
    finally:
        ACTIVE.reset(token)


@dataclass(eq=False)
class Call:
    """One guarded `generate()` call, as a method sees it.

    Args:
        model: the model, plain calls only.
        family: what is particular to its family.
        processor: the processor that the guard was given.
        maybe_pictures: the pictures, from the guarded processor; None where the inputs came from another one.
        maybe_tensors: the call's image tensors by name, B requests, not expanded to beams; None: made from the pictures
            when a method asks for them.
        has_picture: per request, whether its prompt holds a picture.
        trace: where notes and counts go.
        ids: tokens of the prompts, [B, T], and which of them are no padding, [B, T] bool.
        dtype: of the model's pixels, where the image tensors do not tell.
        memory: what a method wants to keep for the rest of this call.
    """

    model: PreTrainedModel
    family: Family
    processor: ProcessorMixin
    maybe_pictures: Pictures | None
    maybe_tensors: dict[str, Tensor] | None
    has_picture: list[bool]
    trace: GuardTrace
    ids: tuple[Tensor, Tensor] | None = None
    dtype: torch.dtype = torch.float32
    memory: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pixels = (t for t in (self.maybe_tensors or {}).values() if torch.is_tensor(t) and t.is_floating_point())
        self.dtype = next((tensor.dtype for tensor in pixels), self.dtype)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer."""
        tokenizer: PreTrainedTokenizerBase = self.processor.tokenizer
        return tokenizer

    @cached_property
    def ends(self) -> set[int]:
        """The tokens that end an answer."""
        ends: Any = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    @property
    def asked(self) -> tuple[Tensor, Tensor]:
        """The prompts' tokens, [B, T], and which of them are no padding, of a call that has some."""
        assert self.ids is not None
        return self.ids

    @property
    def device(self) -> torch.device:
        """Where a branch's inputs go: to the model, or with the prompt where its first weights are offloaded."""
        return device_of(self.model, None if self.ids is None else self.ids[0])

    def guarded(self, request: Sequence[int], device: torch.device) -> Tensor | None:
        """Return which rows show a picture, [R] bool, given the request of each; None where all do."""
        if all(self.has_picture):
            return None
        return torch.tensor([self.has_picture[each] for each in request], device=device)

    @cached_property
    def image_positions(self) -> Tensor:
        """Where the prompts hold tokens of a picture, [B, T] bool.

        Raises `UnsupportedCallError` where they hold none: the model looks at its pictures by cross-attention.
        """
        token = self.family.image_token_id(self.model.config)
        found = None if self.ids is None or token is None else self.ids[0] == token
        if found is None or not bool(found.any()):
            raise UnsupportedCallError(
                "The prompt's tokens hold no picture, so none of its tokens can be hidden. Use a method that reads a "
                "second picture, such as 'agla', or pass guard=False for a plain answer."
            )
        return found

    @cached_property
    def decoder(self) -> Decoder:
        """The language model's layers, norm and head; raises `UnsupportedModelError` where they are not to be found."""
        return Decoder(self.model)

    def run(self, made: Mapping[str, Any], layers: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """Run the plain model once over prompts, outside the guard and without a cache.

        Args:
            made: as a processor gives them, [B, T], such as `opening`, `without_pictures()` or `rewritten()`.
            layers: decoder layers whose outputs are wanted.

        Returns:
            The logits, [B, T, V], and the layers' outputs, [B, T, D]; raises `UnsupportedModelError` where the model or
            one of these layers, does not run on prompts without a picture.
        """
        from lvlm_guard.engine.rows import deltas_kept  # here, so that a method's name costs no transformers

        inputs = self.moved(made)
        wanted = (p.name for p in signature(self.model.forward).parameters.values() if p.default is Parameter.empty)
        if missing := [name for name in wanted if name in self.family.image_keys and name not in inputs]:
            raise self._blind(f"it wants {', '.join(missing)}")
        inputs |= self.family.replayed(self.model, inputs, inputs["input_ids"], inputs["attention_mask"])
        found: list[Tensor] = [torch.empty(0)] * len(layers)
        plain, taps = plain_class(self.model), self.decoder.edited(layers, found.__setitem__)
        with torch.no_grad(), within(self.model, None), deltas_kept(self.model), taps:
            out = plain.__call__(self.model, **inputs, use_cache=False, return_dict=True)
        if any(state.ndim < 2 for state in found):
            raise self._blind("a layer that was asked for does not run")
        return out.logits, found

    def _blind(self, why: str) -> UnsupportedModelError:
        name = plain_class(self.model).__name__
        return UnsupportedModelError(f"This {name} reads no prompt without a picture, which this method needs ({why}).")

    def moved(self, made: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model takes of what a processor made, where the model is and in its precision."""
        return {
            key: on(value, self.device, self.dtype)
            for key, value in made.items()
            if isinstance(value, Tensor) or key in self.family.image_keys
        }

    def images_of(self, made: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the image tensors among what the processor made, as the model takes them."""
        return self.moved({key: value for key, value in made.items() if key in self.family.image_keys})

    def without_pictures(self) -> dict[str, Any]:
        """Return the prompts without their pictures' tokens, padded on the left, [B, T'].

        The tokens that only open and close a picture go with it; the chat's own stay. Raises as `image_positions`.
        """
        pictures, (ids, seen) = self.image_positions, self.asked
        marks = torch.tensor(sorted(self.family.image_marks(self.model.config)), device=ids.device)
        kept = seen.bool() & ~pictures & ~torch.isin(ids, marks)
        length = int(kept.sum(-1).max())
        order = kept.to(torch.int8).sort(dim=-1, stable=True).indices[:, ids.shape[1] - length :]
        mask = kept.gather(1, order)
        # padding is any token but a picture's, which would ask the model for that picture
        made = {"input_ids": ids.gather(1, order).where(mask, ids[:, -1:]), "attention_mask": mask.to(seen.dtype)}
        if "token_type_ids" in signature(self.model.forward).parameters:  # without them PaliGemma reads a row alone
            made["token_type_ids"] = torch.zeros_like(made["input_ids"])  # both ways, a padded one from left to right
        return made

    def rewritten(self, change: Callable[[str, int], str]) -> dict[str, Any]:
        """Return what the processor makes of other prompts about the same pictures, padded on the left, [B, T'].

        Args:
            change: makes another prompt of the one that the processor got, and of the request's index. The pictures'
                placeholders must stay.

        Raises as `opening` does.
        """
        prompts = [change(prompt, index) for index, prompt in enumerate(self.pictures.prompts())]
        # said only where it must be: a Q-Former pads its text on the right
        side = {} if self.tokenizer.padding_side == "left" else {"padding_side": "left"}
        made = self._processed(self.pictures.images(), prompts, padding=True, **side)
        if len(made["input_ids"]) > 1 and not bool(made["attention_mask"][:, -1].all()):
            raise self._otherwise("another prompt")
        return made

    def _processed(self, rows: list[list[Image]], text: Any, **more: Any) -> dict[str, Any]:
        """Return all that the processor makes of pictures and prompts, by the settings of the call's own."""
        settings = self.pictures.kwargs | {"return_tensors": "pt"} | more
        return dict(self.family.process(self.processor, rows, text, self.pictures.args, settings))

    def redrawn(self, images: list[Image]) -> dict[str, Any]:
        """Return what the processor makes of other pictures; where their sizes can't matter, without the prompts."""
        told = {name for name, value in self.pictures.kwargs.items() if value is not None}  # a chat's videos are None
        if self.family.fixed_size and len(self.family.image_keys) == 1 and not self.pictures.args and told <= OF_TEXT:
            return dict(self.processor.image_processor(images, return_tensors="pt"))
        rest = iter(images)
        return self._processed([[next(rest) for _ in row] for row in self.requests()], self.pictures.text)

    @property
    def pictures(self) -> Pictures:
        """The pictures; raises `MissingViewError` where the inputs come from no guarded processor, or not whole."""
        if self.maybe_pictures is None:
            raise MissingViewError(
                "These inputs hold a picture but not the pictures themselves ('guard_views'), which this method must "
                "look at. They were made by a processor that is not guarded, or only some of them were passed on. "
                "Make them with the processor that guard(model, processor) returned and pass all of them: "
                "model.generate(**inputs). For a plain answer, pass guard=False."
            )
        return self.maybe_pictures

    @cached_property
    def opening(self) -> dict[str, Any]:
        """All that the processor makes of the prompts and the pictures, [B, T]; of a later turn, what began it.

        Raises:
            MissingViewError: see `pictures`.
            UnsupportedCallError: the prompts begin otherwise.
        """
        made = self._processed(self.pictures.images(), self.pictures.text)
        if not self._begins(made):
            raise self._otherwise("the pictures' prompt")
        return made

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The image tensors by name; raises as `opening` does."""
        return self.images_of(self.opening) if self.maybe_tensors is None else self.maybe_tensors

    def _begins(self, made: Mapping[str, Any]) -> bool:
        """Tell whether the prompts begin with the tokens of what the processor made, padding aside."""
        if self.ids is None or "input_ids" not in made:  # the pictures alone were processed
            return True
        own = made.get("attention_mask", torch.ones_like(made["input_ids"])).bool()
        return len(own) == len(self.ids[0]) and all(
            torch.equal(new[kept], old[shown.bool()][: int(kept.sum())].cpu())
            for new, kept, old, shown in zip(made["input_ids"], own, *self.ids, strict=True)
        )

    def _otherwise(self, what: str) -> UnsupportedCallError:
        name = type(self.processor).__name__
        return UnsupportedCallError(
            f"{name} lays {what} out otherwise than the call's inputs, so the branches would read different prompts. "
            "Give second views of the pictures' own sizes (frame='original'), leave truncation out, and pass the "
            "inputs as the processor gave them."
        )

    def requests(self) -> list[list[View]]:
        """Return the views of each request; raises `MissingViewError` as `pictures` does."""
        return self.pictures.rows

    def only(self, requests: list[int]) -> Call | None:
        """Return the same call about some requests, processed alone; None where that can't be, or is not proven."""
        if self.maybe_pictures is None or self.ids is None or not self.family.proof.alone:
            return None
        ids, seen = self.ids
        return replace(
            self,
            maybe_pictures=self.maybe_pictures.only(requests),
            maybe_tensors=None,
            has_picture=[self.has_picture[request] for request in requests],
            ids=(ids[requests], seen[requests]),
            memory={},
        )

    def require_text(self) -> None:
        """Raise `TextError` unless every picture has a matching text or a second view of its own."""
        if not any(self.has_picture) or self.pictures.given:
            return
        for index, row in enumerate(self.requests()):
            if row and not row[0].text.strip():
                raise TextError(
                    row[0].note
                    or f"Request {index} shows a picture but asks nothing about it, so there is no question to match "
                    'the picture with. Ask one, or state it: processor(..., guard_text="Is there a dog?").'
                )

    def redraw(self, draw: Callable[[list[View]], list[Image]]) -> dict[str, Tensor]:
        """Return the image tensors of a branch that sees other pictures.

        Args:
            draw: makes a second picture of each view; not asked where the caller brought his own.

        Raises:
            MissingViewError: see `pictures`.
            UnsupportedCallError: the second pictures do not fit the prompt's tokens.
        """
        views = self.pictures.views()
        drawn = [view.own for view in views] if self.pictures.given else draw(views)
        for view, local in zip(views, drawn, strict=True):
            self.trace.view(view.index).local = local
        self.trace.masks += len(views)
        made = self.redrawn(drawn)
        images = self.images_of(made)
        # equal sizes take equal tokens in equal places; else the integers tell: a grid of 2 x 8 is none of 8 x 2
        same = self.maybe_tensors is None and [view.image.size for view in views] == [local.size for local in drawn]
        if not self._begins(made) or not (same or _same_layout(images, self.tensors)):
            raise self._otherwise("the second view")
        return images


def replaced(prompt: str, question: str, by: str) -> str:
    """Return a prompt with another text in its question's place; raises `UnsupportedCallError` if it is not there."""
    before, found, behind = prompt.rpartition(question)
    if not (found and question):
        raise UnsupportedCallError(
            f"The prompt does not hold the question {question!r}, whose place this method must know. Leave guard_text "
            "out, or give the question as the prompt has it."
        )
    return before + by + behind


def device_of(model: PreTrainedModel, prompt: Tensor | None = None) -> torch.device:
    """Return where a model's inputs go; where accelerate keeps its first weights elsewhere, with the prompt."""
    device = torch.device(model.device)
    if device.type != "meta":
        return device
    return torch.device("cpu") if prompt is None else prompt.device


def on(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Bring a processor's tensor to a model's device, and to its dtype where it is of a floating type."""
    if not isinstance(value, Tensor):
        return value
    return value.to(device, dtype if value.is_floating_point() else value.dtype)


def _same_layout(made: dict[str, Tensor], tensors: dict[str, Tensor]) -> bool:
    """Tell whether two sets of image tensors stand for the same number of image tokens.

    Where a family states grids or sizes, those decide: its pixels may be padded to what else is in a batch.
    """
    if made.keys() != tensors.keys():
        return False
    told = {key: value for key, value in tensors.items() if not torch.is_tensor(value)}  # lists, of Unlimited-OCR
    stated = [key for key, value in tensors.items() if key not in told and not value.is_floating_point()]
    if told or stated:
        return all(torch.equal(made[key], tensors[key]) for key in stated) and told.items() <= made.items()
    return all(made[key].shape == tensor.shape for key, tensor in tensors.items())
