"""The trial that a model passes once before it is guarded: proven, or refused with what was found.

The truth is plain generate() of the same model *on the second views*, forced to the same answer. The unchanged picture
would prove nothing: a branch that never looks at its own equals the global one to the last bit. Nor would a greedy
answer, which small models fill with one token: its tokens are drawn. What is held against it is the engine itself,
and it offers no more than was proven. Differences are in units of the logits' spread.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image, ImageChops
from torch import Tensor
from transformers import DynamicCache

from lvlm_guard.engine.call import device_of, on
from lvlm_guard.engine.guarded import session_of
from lvlm_guard.engine.method import Branch, Method, Step
from lvlm_guard.engine.rows import CACHE, deltas_kept, until
from lvlm_guard.errors import UnsupportedModelError
from lvlm_guard.families.family import Family, pair_name
from lvlm_guard.matching.cells import token_relevance
from lvlm_guard.pair import guard_off, install
from lvlm_guard.proving.proof import UNPROVEN, Proof

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call

SAME = {torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""How far a right branch may be off in narrow types; elsewhere 1e-3. Measured are 1e-5 in float32 where a late branch
reads in other pieces, 0 where it reads as generate() does; wrong ones are off by 3e-2 and more."""
AGREE = 0.6
"""Share of a picture's tokens that move most where that quarter is painted which they are taken to show, at least. Of
tiny models .64 to 1, of resamplers .17, of cells in another order .47; by chance .25."""
STEPS, LATE, PAINTED = 4, 3, 1


def self_check(family: Family, model: Any, processor: Any) -> Proof:
    """Prove on this model and processor that a second branch is right; raises `UnsupportedModelError` where it is not.

    Three left-padded requests with pictures of two shapes, a quarter of which is a negative in the second view. What a
    module remembers of the user's last call beside its weights, by which his next turn goes on, stays what it was.
    """
    with deltas_kept(model), torch.no_grad():
        return _Trial(family, model, processor).proof()


@dataclass(frozen=True)
class _Probe(Method):
    """A branch that weighs nothing, whose logits are noted by request and step."""

    name: ClassVar[str] = "proof"
    answer: list[list[int]]
    start: int = 1
    only: int | None = None
    undo: bool = False
    hide: bool = False
    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    lit: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("hidden", hides=self._hides) if self.hide else Branch("painted", pixels=self._view),)

    def _view(self, call: Call) -> dict[str, Tensor]:
        return call.redraw(lambda views: [_painted(view.image, PAINTED) for view in views])

    def _hides(self, call: Call) -> Tensor:
        """Hide what shows the quarter that the second views have painted, [B, T] bool."""
        quarters, hidden = torch.zeros(4, 32, 32), torch.zeros_like(call.image_positions)
        for number, quarter in enumerate(quarters):
            quarter.view(2, 16, 2, 16)[number // 2, :, number % 2] = 1
        lit = [torch.cat(token_relevance(call, [quarter] * len(call.pictures.views()))) for quarter in quarters]
        self.lit.extend(lit)
        self.hidden.append(hidden)
        hidden[call.image_positions] = ((torch.stack(lit).argmax(0) == PAINTED) & lit[0].isfinite()).to(hidden.device)
        return hidden

    def decided(self, step: Step) -> Tensor:
        idle = [self.only not in (None, request) for request in step.request]
        return (step.t < self.start) | torch.tensor(idle, device=step.t.device)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        for row, (request, t) in enumerate(zip(step.request, step.t.tolist(), strict=True)):
            if branches is not None and self.only in (None, request):
                assert step.prefix(row) == self.answer[request][: t - 1]
                self.logits[request, t] = branches[0][row]
        session = session_of(step.call.model)
        if self.undo and session is not None and bool(step.t[0] > 1):
            for reading in session.readings:
                reading.take_back(1)
        return step.logits

    def knobs(self) -> dict[str, Any]:
        return {}

    def said(self, requests: Iterable[int]) -> Tensor:
        """Return the logits of some requests at the steps where the branch ran, [requests, steps, V]."""
        steps = range(self.start, STEPS + 1)
        return torch.stack([torch.stack([self.logits[request, t] for t in steps]) for request in requests])


class _Trial:
    """The trial of copies, which share the weights: the user's own objects stay guarded as they are."""

    def __init__(self, family: Family, model: Any, processor: Any) -> None:
        self.family, self.model, self.processor = family, copy.copy(model), copy.copy(processor)
        self.name = pair_name(model, processor)
        guard_off(self.model, self.processor)

    def proof(self) -> Proof:
        try:
            self._ask(longer=True)
            plain, self.truth = (self._answered(self._inputs(images)) for images in (self.images, self.second))
        except Exception as error:  # whatever a model of somebody else's may raise
            raise self._refused(f"plain generate() fails on a batch of pictures: {error}") from error
        seen = _apart(self.truth, plain)
        if not seen > 1e-2:
            raise self._refused("another picture does not change the answer's logits, so there is nothing to guard.")
        self.allowed = min(SAME.get(self.model.dtype, 1e-3), seen / 4)
        try:
            off = self._off(UNPROVEN)
        except Exception as error:
            raise self._refused(f"a second branch fails inside the model: {error}") from error
        if not off < self.allowed:
            raise self._refused(
                f"the second branch's logits are off by {off:.1g} of their spread, where the other picture moves "
                f"them by {seen:.1g}. This family can't be guarded without code of its own."
            )
        ways = ("prompt+chunk", "steps")
        way = next((way for way in ways if not self._fails(replace(UNPROVEN, way=way), start=LATE)), None)
        if way is None:
            raise self._refused("a branch that reads late what it skipped says otherwise than one that never did.")
        found = {
            "stacks": self._fails(replace(UNPROVEN, way=way, stacks=True), execution="batched")
            or self._fails(replace(UNPROVEN, way=way, stacks=True), execution="auto", start=2),
            "alone": self._fails(replace(UNPROVEN, way=way, alone=True), start=LATE, only=1),
            "crops": self._fails(replace(UNPROVEN, way=way, crops=True), undo=True),
        }
        if any(
            type(layer).__name__ == "DynamicIndexedLayer" for layer in DynamicCache(config=self.model.config).layers
        ):
            found["alone"] = "an indexer's choice among ties is another one in another batch, in plain generate() too"
        found["hides"] = self._fails_to_hide(replace(UNPROVEN, way=way, stacks=not found["stacks"]))
        offered = {what: not reason for what, reason in found.items()}
        why = {what: reason for what, reason in found.items() if reason}
        return Proof(way, **offered, error=off, seen=seen, why=why)

    def _refused(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {why}")

    def _fails(self, proof: Proof, **how: Any) -> str | None:
        """Return why this is not to be offered: a cache that can't be joined, an argument that does not grow, ..."""
        try:
            off = self._off(proof, **how)
        except Exception as error:
            return _said(error)
        return None if off < self.allowed else f"its logits are off by {off:.1g} of their spread"

    def _off(self, proof: Proof, execution: str = "lazy", **how: Any) -> float:
        """Return how far a branch is from the truth at the steps where it runs, under the guard itself."""
        probe = self._guarded(proof, execution, **how)
        wanted = [r for r in range(len(self.answer)) if probe.only in (None, r)]
        return _apart(probe.said(wanted), self.truth[wanted, probe.start - 1 :])

    def _fails_to_hide(self, proof: Proof) -> str | None:
        """Return why a branch may not hide a part of the picture in the model's cache; None where that is right.

        The prompts are short, since a sliding window must not let go of a picture. Which tokens show the painted
        quarter, the model itself says: each token moves most where that one is painted which it shows.
        """
        try:
            self._ask(longer=False)
            probe = self._guarded(proof, "lazy", hide=True)
            lit, plain = torch.stack(probe.lit), self._embedded(self.images)
            moved = torch.stack([(self._embedded(self._painted(n)) - plain).norm(dim=-1) for n in range(4)])
            agree = (moved.argmax(0).cpu() == lit.argmax(0).cpu())[lit[0].isfinite().cpu()].double().mean()
            if agree < AGREE:
                return f"only {agree:.0%} of its image tokens show what their place in the picture says"
            try:
                self.truth = self._masked(probe.hidden[0])
            except Exception as error:
                return f"plain generate() can't read under a mask with holes, so nothing proves it: {_said(error)}"
            off = _apart(probe.said(range(len(self.answer))), self.truth)
            if not off < self.allowed:
                return f"what reads the rest of the picture is off by {off:.1g} of the logits' spread"
        except Exception as error:
            return _said(error)
        return self._fails(proof, execution="batched", hide=True) if proof.stacks else None

    def _masked(self, hidden: Tensor) -> Tensor:
        """Return the logits of the answer where the text behind a picture can't see what is hidden, [B, steps, V].

        By plain generate() alone, twice a request: up to the end of the picture, then on from that cache under a mask
        with holes, each token at the position that it has in the whole prompt.
        """
        rows = []
        for row, gone in enumerate(hidden):
            one = self._inputs(self.images, row)
            ids, images = one["input_ids"], {key: one[key] for key in self.family.image_keys if key in one}
            length, whole = ids.shape[1], torch.ones_like(ids)
            end = int((ids[0] == self.family.image_token_id(self.model.config)).nonzero().max()) + 1
            along = self.family.replayed(self.model, one, ids, whole)
            text = until({"input_ids": ids, "attention_mask": whole, **along}, end, length)
            cache = self._generate(self.model, {**text, **images}, row, 1)[CACHE]
            mask = whole * ~gone[-length:]
            rows.append(self._answered({"input_ids": ids, "attention_mask": mask, CACHE: cache, **along}, row))
        return torch.cat(rows)

    def _ask(self, longer: bool) -> None:
        """Make the requests, longer than a sliding window or not; that only where it is small enough to be left."""
        config = self.model.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
        shades = (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(45))
        pictures = [Image.merge("RGB", (shade, shade.rotate(90), shade.rotate(180))) for shade in shades]
        things, more = ("dog", "red traffic light", "cat"), ""  # of unequal length, so that rows are padded
        for second in ((160, 160), (224, 160)):  # Perception LM's processor can't batch pictures of unequal shapes
            sizes = ((224, 160), second, (224, 160))
            self.images = [[picture.resize(size)] for picture, size in zip(pictures, sizes, strict=True)]
            self.second = self._painted(PAINTED)
            self.text = [self.family.asked(self.processor, f"Is there a {thing} in it?", 1) for thing in things]
            with suppress(Exception):
                self._inputs(self.images)
                break
        while longer and window <= 2048 and self._inputs(self.images)["input_ids"].shape[1] <= window:
            more += "Look closely. " * (1 + window // 8)
            self.text = [self.family.asked(self.processor, f"{more}Is there a {thing} in it?", 1) for thing in things]
        tokenizer = self.processor.tokenizer
        words = tokenizer(f"Is there a {things[1]} in it?", add_special_tokens=False)["input_ids"]
        free = torch.tensor(sorted(set(words) - set(tokenizer.all_special_ids)))
        drawn = torch.randint(len(free), (len(things), STEPS), generator=torch.Generator().manual_seed(0))
        self.answer: list[list[int]] = free[drawn].tolist()

    def _inputs(self, images: list[list[Image.Image]], row: int | None = None, processor: Any = None) -> dict[str, Any]:
        chosen = slice(None) if row is None else slice(row, row + 1)
        made = (processor or self.processor)(
            images=images[chosen], text=self.text[chosen], padding=True, padding_side="left", return_tensors="pt"
        )
        device = device_of(self.model)
        return {key: on(value, device, self.model.dtype) for key, value in made.items()}

    def _generate(
        self, model: Any, inputs: dict[str, Any], row: int | None = None, steps: int = STEPS, **more: Any
    ) -> Any:
        prompt, answers = inputs["input_ids"].shape[1], self.answer if row is None else [self.answer[row]]
        return model.generate(  # forced by prefix_allowed_tokens_fn, since Janus's generate() drops a logits_processor
            **inputs, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, num_beams=1,
            return_dict_in_generate=True, output_logits=True,
            prefix_allowed_tokens_fn=lambda row, ids: [answers[row][min(len(ids) - prompt, STEPS - 1)]], **more,
        )  # fmt: skip

    def _answered(self, inputs: dict[str, Any], row: int | None = None) -> Tensor:
        """Return the logits of the answer by the model's own generate(), [B, steps, V]."""
        return torch.stack(self._generate(self.model, inputs, row).logits, dim=1)

    def _embedded(self, images: list[list[Image.Image]]) -> Tensor:
        """Return the pictures' features as the language model takes them, [tokens, D]."""
        inputs = self._inputs(images)
        embeds = self._generate(self.model, inputs, None, 1, output_hidden_states=True).hidden_states[0][0]
        found: Tensor = embeds[inputs["input_ids"] == self.family.image_token_id(self.model.config)]
        return found

    def _painted(self, quarter: int) -> list[list[Image.Image]]:
        return [[_painted(image, quarter) for image in row] for row in self.images]

    def _guarded(self, proof: Proof, execution: str, **how: Any) -> _Probe:
        probe, model, processor = _Probe(self.answer, **how), copy.copy(self.model), copy.copy(self.processor)
        install(model, processor, replace(self.family, proof=proof), probe)
        self._generate(model, self._inputs(self.images, None, processor), guard_execution=execution)
        return probe


def _said(error: Exception) -> str:
    """Return the first sentence of what was raised; of a branch that can't live in the model's cache, why."""
    return re.split(r"(?<=\w)\. |\n", str(error))[0].rpartition(", and here ")[2]


def _painted(image: Image.Image, quarter: int) -> Image.Image:
    """Return a picture one quarter of which is a negative; 0 is the upper left one, 1 the upper right."""
    across, down = image.width // 2, image.height // 2
    left, top = across * (quarter % 2), down * (quarter // 2)
    found, box = image.copy(), (left, top, left + across, top + down)
    found.paste(ImageChops.invert(image.crop(box)), box)
    return found


def _apart(mine: Tensor, truth: Tensor) -> float:
    """Return the largest difference of logits in units of their spread; inf for what is no number.

    Tokens that a model itself rules out, as Chameleon its pictures', are left out.
    """
    open_to_all = truth > torch.finfo(truth.dtype).min / 2
    far = (mine.double() - truth.double())[open_to_all].abs().max() / truth[open_to_all].double().std()
    return float(far) if torch.isfinite(far) else float("inf")
