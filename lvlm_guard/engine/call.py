"""What one `generate()` call is about: its requests, their pictures and questions, and the image tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import Parameter, signature
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_guard.engine.active import within
from lvlm_guard.engine.rows import deltas_kept
from lvlm_guard.engine.steering import Decoder
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import MissingViewError, TextError, UnsupportedCallError, UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from lvlm_guard.engine.trace import GuardTrace
    from lvlm_guard.families.family import Family

VIEWS = "guard_views"  # the key under which a guarded processor hands its pictures to generate()


@dataclass
class View:
    """One picture of a request. A call writes nothing on it: what a method made of it is in `GuardTrace.views`.

    Args:
        image: the picture as the user gave it, RGB.
        text: the matching text, or "" where none was found.
        index: its place among the pictures of the call.
        local: the caller's own second view (`guard_images`); None where a method is to make one.
        note: what a reader of the trace should know of the text.
    """

    image: Image
    text: str
    index: int = 0
    local: Image | None = None
    note: str | None = None


class Pictures:
    """The pictures and questions behind a batch of inputs; travels with the inputs as `guard_views`.

    It holds no second view yet: those are made at the first decoding step that needs them. It is plain
    data, so that a DataLoader's workers can make inputs.

    Args:
        rows: for each request its views, in the order of the prompt's placeholders.
        text: the prompts, as the processor got them.
        args: the processor's further arguments by position.
        kwargs: the processor's further arguments by name.
        given: whether the caller brought the second views (`guard_images=`).
    """

    def __init__(
        self,
        rows: list[list[View]],
        text: str | list[str] = "",
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        given: bool = False,
    ) -> None:
        self.rows = rows
        self.text = text
        self.args = args
        self.kwargs = kwargs or {}
        self.given = given

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
        return Pictures([self.rows[request] for request in requests], text, self.args, self.kwargs, self.given)

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self) -> list[str]:
        """Return the prompts, one a request."""
        return [self.text] if isinstance(self.text, str) else self.text

    def views(self) -> list[View]:
        """Return every picture's view, request after request."""
        return [view for row in self.rows for view in row]

    def to(self, *_: Any, **__: Any) -> Pictures:
        """Return itself: `{k: v.to(device) for k, v in inputs.items()}` is how many scripts move inputs."""
        return self


class Call:
    """One guarded `generate()` call, as a method sees it.

    Args:
        model: the model, plain calls only.
        family: what is particular to its family.
        processor: the processor that the guard was given.
        pictures: from the guarded processor; None where the inputs came from another one.
        tensors: the call's image tensors by name, B requests, not expanded to beams; None: made from the pictures
            when a method asks for them.
        has_picture: per request, whether its prompt holds a picture.
        trace: where notes and counts go.
        ids: tokens of the prompts, [B, T], and which of them are no padding, [B, T] bool.
        dtype: of the model's pixels.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        processor: ProcessorMixin,
        pictures: Pictures | None,
        tensors: dict[str, Tensor] | None,
        has_picture: list[bool],
        trace: GuardTrace,
        ids: tuple[Tensor, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model = model
        self.family = family
        self.processor = processor
        self.ids = ids
        self.dtype = next(
            (t.dtype for t in (tensors or {}).values() if torch.is_tensor(t) and t.is_floating_point()), dtype
        )
        self.has_picture = has_picture
        self.trace = trace
        self._pictures = pictures
        self._tensors = tensors
        self._opening: dict[str, Any] | None = None
        self.memory: dict[Any, Any] = {}  # what a method wants to keep for the rest of this call

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
    def device(self) -> torch.device:
        """Where a branch's inputs go: to the model, or with the prompt where its first weights are offloaded."""
        return device_of(self.model, None if self.ids is None else self.ids[0])

    @cached_property
    def image_positions(self) -> Tensor:
        """Where the prompts hold tokens of a picture, [B, T] bool.

        Raises:
            UnsupportedCallError: they hold none: the model looks at its pictures by cross-attention.
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
            The logits, [B, T, V], and the layers' outputs, [B, T, D].

        Raises:
            UnsupportedModelError: the model, or one of these layers, does not run on prompts without a picture.
        """
        inputs = self.moved(made)
        wanted = (p.name for p in signature(self.model.forward).parameters.values() if p.default is Parameter.empty)
        if missing := [name for name in wanted if name in self.family.image_keys and name not in inputs]:
            raise self._blind(f"it wants {', '.join(missing)}")
        inputs |= self.family.replayed(self.model, inputs, inputs["input_ids"], inputs["attention_mask"])
        given: list[Tensor] = [torch.empty(0)] * len(layers)
        plain: Any = plain_class(self.model)
        with (
            torch.no_grad(),
            within(self.model, None),
            deltas_kept(self.model),
            self.decoder.tapped(layers, given.__setitem__),
        ):
            out = plain.__call__(self.model, **inputs, use_cache=False, return_dict=True)
        if any(state.ndim < 2 for state in given):
            raise self._blind("a layer that was asked for does not run")
        return out.logits, given

    def _blind(self, why: str) -> UnsupportedModelError:
        name = plain_class(self.model).__name__
        return UnsupportedModelError(f"This {name} reads no prompt without a picture, which this method needs ({why}).")

    def moved(self, made: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the model takes of what a processor made, where the model is and in its precision."""
        kept = {key for key, value in made.items() if isinstance(value, Tensor) or key in self.family.image_keys}
        return {key: on(made[key], self.device, self.dtype) for key in kept}

    def without_pictures(self) -> dict[str, Any]:
        """Return the prompts without their pictures' tokens, padded on the left, [B, T'].

        The tokens that only open and close a picture go with it; the chat's own stay.

        Raises:
            UnsupportedCallError: see `image_positions`.
        """
        pictures = self.image_positions
        assert self.ids is not None
        ids, seen = self.ids
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

        Raises:
            MissingViewError, UnsupportedCallError: see `opening`.
        """
        prompts = [change(prompt, index) for index, prompt in enumerate(self.pictures.prompts())]
        seen = [[view.image for view in row] for row in self.pictures.rows]
        settings = self.pictures.kwargs | {"padding": True, "return_tensors": "pt"}
        if self.tokenizer.padding_side != "left":  # said only where it must be: a Q-Former pads its text on the right
            settings["padding_side"] = "left"
        made = dict(self.family.process(self.processor, seen, prompts, self.pictures.args, settings))
        if len(made["input_ids"]) > 1 and not bool(made["attention_mask"][:, -1].all()):
            raise self._otherwise("another prompt")
        return made

    @property
    def pictures(self) -> Pictures:
        """The pictures behind the inputs.

        Raises:
            MissingViewError: the inputs did not come from a guarded processor, or not whole.
        """
        if self._pictures is None:
            raise MissingViewError(
                "These inputs hold a picture but not the pictures themselves ('guard_views'), which this method must "
                "look at. They were made by a processor that is not guarded, or only some of them were passed on. "
                "Make them with the processor that guard(model, processor) returned and pass all of them: "
                "model.generate(**inputs). For a plain answer, pass guard=False."
            )
        return self._pictures

    @property
    def opening(self) -> dict[str, Any]:
        """All that the processor makes of the prompts and the pictures, [B, T]; of a later turn, what began it.

        Raises:
            MissingViewError: see `pictures`.
            UnsupportedCallError: the prompts begin otherwise.
        """
        if self._opening is None:
            seen = [[view.image for view in row] for row in self.pictures.rows]
            self._opening = self._fitting(
                self.family.processed(self.processor, self.pictures, seen), "the pictures' prompt"
            )
        return self._opening

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The image tensors by name; raises as `opening` does."""
        if self._tensors is None:
            self._tensors = self.images_of(self.opening)
        return self._tensors

    def _fitting(self, made: dict[str, Any], what: str) -> dict[str, Any]:
        """Return what the processor made, if the prompts begin so."""
        if self.ids is not None and not _opens(made, *self.ids):
            raise self._otherwise(what)
        return made

    def images_of(self, made: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the image tensors among what the processor made, as the model takes them."""
        return {key: on(value, self.device, self.dtype) for key, value in made.items() if key in self.family.image_keys}

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
        if self._pictures is None or self.ids is None or not self.family.proof.alone:
            return None
        ids, seen = self.ids
        return Call(
            self.model,
            self.family,
            self.processor,
            self._pictures.only(requests),
            None,
            [self.has_picture[request] for request in requests],
            self.trace,
            (ids[requests], seen[requests]),
            self.dtype,
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
        drawn = iter([_own(view) for view in views] if self.pictures.given else draw(views))
        seen = [[next(drawn) for _ in row] for row in self.requests()]
        for view, local in zip(views, (local for row in seen for local in row), strict=True):
            self.trace.view(view.index).local = local
        self.trace.masks += len(views)
        made = self.images_of(
            self._fitting(self.family.redrawn(self.processor, self.pictures, seen), "the second view")
        )
        # equal sizes take equal tokens in equal places; else the integers tell: a grid of 2 x 8 is none of 8 x 2
        shown = [local for row in seen for local in row]
        same = all(view.image.size == local.size for view, local in zip(views, shown, strict=True))
        if not (same and self._tensors is None) and not _same_layout(made, self.tensors):
            raise self._otherwise("the second view")
        return made


def replaced(prompt: str, question: str, by: str) -> str:
    """Return a prompt with another text in its question's place.

    Raises:
        UnsupportedCallError: the prompt does not hold the question.
    """
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


def _own(view: View) -> Image:
    if view.local is None:
        raise MissingViewError(
            f"Picture {view.index} came without a second view, while others have one of the caller's own "
            "(guard_images). Give one for each picture, or none."
        )
    return view.local


def _opens(made: dict[str, Any], ids: Tensor, seen: Tensor) -> bool:
    """Tell whether the prompts [B, T] begin with the tokens of what a processor made, padding aside."""
    if "input_ids" not in made:  # the pictures alone were processed
        return True
    if len(made["input_ids"]) != len(ids):
        return False
    own = made.get("attention_mask", torch.ones_like(made["input_ids"])).bool()
    return all(
        torch.equal(new[kept], old[shown.bool()][: int(kept.sum())].cpu())
        for new, kept, old, shown in zip(made["input_ids"], own, ids, seen, strict=True)
    )


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
