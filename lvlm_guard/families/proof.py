"""The proof that a second branch is right on a model, once for each: proven, or refused with what was found.

The truth is plain generate() of the same model *on the second views*, forced to the same answer. The unchanged picture
would prove nothing: a branch that never looks at its own equals the global one to the last bit. Nor would a greedy
answer, which small models fill with one token: its tokens are drawn. What is held against it is the engine itself,
and it offers no more than was proven. Differences are in units of the logits' spread.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
import transformers
from PIL import Image, ImageDraw
from torch import Tensor
from transformers import DynamicCache
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]

from lvlm_guard.engine import guarded
from lvlm_guard.engine.call import device_of, on
from lvlm_guard.engine.method import Branch, Method, Step
from lvlm_guard.engine.rows import deltas_kept
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.errors import KnobError, UnsupportedCallError, UnsupportedModelError
from lvlm_guard.files import caches, whole

if TYPE_CHECKING:
    from lvlm_guard.engine.call import Call
    from lvlm_guard.families.family import Family

Check = Literal["always", "unknown", "never"]
SAME = {torch.bfloat16: 5e-2, torch.float16: 2e-2}
"""How far a right branch may be off in narrow types; elsewhere 1e-3. Measured are 1e-5 in float32 where a late branch
reads in other pieces, 0 where it reads as generate() does; wrong ones are off by 3e-2 and more."""
STEPS, LATE = 4, 3


@dataclass(frozen=True)
class Proof:
    """What was found when a branch was held against plain generate() on its own pictures.

    Args:
        way: how a late branch reads what it skipped: the prompt as generate() read it, then the answer in one call
            ("prompt+chunk") or token by token ("steps"); None: it must run from the first step on.
        stacks: whether its rows may join the global cache.
        alone: whether some requests of a batch may run without the others.
        crops: whether tokens can be taken back from its cache.
        error: how far the branch's logits are off from the first step on; 0 where nothing is read in other pieces.
        seen: how far the other picture moves the logits.
    """

    way: str | None = "prompt+chunk"
    stacks: bool = True
    alone: bool = True
    crops: bool = True
    error: float = 0.0
    seen: float = 0.0


UNPROVEN = Proof(stacks=False, alone=False, crops=False)
"""What a model gets that nobody proved (check="never")."""


def table() -> dict[str, dict[str, Any]]:
    """Return what was proven of tiny models of each model type, and why others are refused; a command wrote it."""
    found: dict[str, dict[str, Any]] = json.loads((files(__package__) / "proven.json").read_text())
    return found


def proven(family: Family, model: Any, processor: Any, check: Check) -> Family:
    """Return a family with its proof.

    Args:
        family: of the model and its processor.
        model: plain or guarded.
        processor: the one that belongs to it.
        check: "always" proves this very model anew; "unknown" only where neither a table nor a kept proof knows it;
            "never" trusts it.

    Raises:
        UnsupportedModelError: it can't be guarded; says what was found.
        KnobError: check is none of the three.
    """
    if check not in get_args(Check):
        raise KnobError(f"check is {check!r}: give 'always', 'unknown' or 'never'.")
    wanted = PROCESSOR_MAPPING_NAMES.get(family.model_type)
    usual = wanted in (None, plain_class(processor).__name__)
    if family.model_types:  # a class of its own, whose branches its own tests hold against its own decoding
        if not usual:
            raise UnsupportedModelError(
                f"The processor of a {plain_class(model).__name__} is a {wanted}, but this is a "
                f"{plain_class(processor).__name__}. Load both from one place."
            )
        return family
    told = table().get(family.model_type, {}) if usual and _attention(model) in ("eager", "sdpa") else {}
    known = Proof(**told["proof"]) if "proof" in told else None
    if check == "never":
        return replace(family, proof=known or UNPROVEN)
    if check == "unknown":
        known = known or kept(model, processor)
    if known is None or check == "always":
        known = self_check(family, model, processor)
        keep(model, processor, known)
    return replace(family, proof=known)


def self_check(family: Family, model: Any, processor: Any) -> Proof:
    """Prove on this model and processor that a second branch is right; raises `UnsupportedModelError` where it is not.

    Three left-padded requests with pictures of two shapes, whose right half is black in the second view. What a
    module remembers of the user's last call beside its weights, by which his next turn goes on, stays what it was.
    """
    with deltas_kept(model):
        return _Trial(family, model, processor).proof()


@dataclass(frozen=True)
class _Probe(Method):
    """A branch that weighs nothing, whose logits are noted by request and step."""

    name: ClassVar[str] = "proof"
    answer: list[list[int]]
    start: int = 1
    only: int | None = None
    undo: bool = False
    calls: list[int] = field(default_factory=list)
    logits: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("painted", self._view),)

    def _view(self, call: Call) -> dict[str, Tensor]:
        return call.redraw(lambda views: [_painted(view.image) for view in views])

    def decided(self, step: Step) -> Tensor:
        idle = [self.only not in (None, request) for request in step.request]
        return (step.t < self.start) | torch.tensor(idle, device=step.t.device)

    def assemble(self, step: Step, branches: tuple[Tensor, ...] | None) -> Tensor:
        self.calls.append(int(step.t[0]))
        for row, (request, t) in enumerate(zip(step.request, step.t.tolist(), strict=True)):
            if branches is not None and self.only in (None, request):
                assert step.prefix(row) == self.answer[request][: t - 1]
                self.logits[request, t] = branches[0][row]
        session = guarded.session_of(step.call.model)
        if self.undo and session is not None and bool(step.t[0] > 1):
            session.take_back(1)
        return step.logits

    def knobs(self) -> dict[str, Any]:
        return {}


class _Trial:
    def __init__(self, family: Family, model: Any, processor: Any) -> None:
        self.family, self.model, self.processor = family, model, processor
        self.name = f"{plain_class(model).__name__} with {plain_class(processor).__name__}"

    def proof(self) -> Proof:
        try:
            with _as_it_was(self.model, self.processor):
                guard_off(self.model, self.processor)
                try:
                    self._ask((224, 160), (160, 160), (224, 160))
                except Exception:  # Perception LM's processor can't batch pictures of unequal shapes
                    self._ask((224, 160), (224, 160), (224, 160))
                plain = self._plain(self._processed(self.images))
                truth = self._plain(self._processed([[_painted(image) for image in row] for row in self.images]))
        except Exception as error:  # whatever a model of somebody else's may raise
            raise self._refused(f"plain generate() fails on a batch of pictures: {error}") from error
        seen = _apart(truth, plain)
        if not seen > 1e-2:
            raise self._refused("another picture does not change the answer's logits, so there is nothing to guard.")
        self.truth, self.allowed = truth, min(SAME.get(self.model.dtype, 1e-3), seen / 4)
        try:
            off = self._off(UNPROVEN)
        except UnsupportedModelError:
            raise
        except Exception as problem:
            raise self._refused(f"a second branch fails inside the model: {problem}") from problem
        if not off < self.allowed:
            raise self._refused(
                f"the second branch's logits are off by {off:.1g} of their spread, where the other picture moves "
                f"them by {seen:.1g}. This family can't be guarded without code of its own."
            )
        ways = ("prompt+chunk", "steps")
        way = next((way for way in ways if self._holds(replace(UNPROVEN, way=way), start=LATE)), None)
        base = replace(UNPROVEN, way=way)
        layers = DynamicCache(config=self.model.config).layers
        # an indexer's choice among ties is another one in another batch, in plain generate() too
        indexed = any(type(layer).__name__ == "DynamicIndexedLayer" for layer in layers)
        return Proof(
            way,
            self._holds(replace(base, stacks=True), execution="batched")
            and self._holds(replace(base, stacks=True), execution="auto", start=2),
            not indexed and self._holds(replace(base, alone=True), start=LATE, only=1),
            self._holds(replace(base, crops=True), undo=True),
            off,
            seen,
        )

    def _refused(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.name}: {why}")

    def _ask(self, *sizes: tuple[int, int]) -> None:
        """Make the requests; their prompt is longer than a sliding window, where that is small enough to be left."""
        config = self.model.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None) or 0
        shades = (Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(45))
        pictures = [Image.merge("RGB", (shade, shade.rotate(90), shade.rotate(180))) for shade in shades]
        self.images = [[picture.resize(size)] for picture, size in zip(pictures, sizes, strict=True)]
        things, more = ("dog", "red traffic light", "cat"), ""  # of unequal length, so that rows are padded
        while True:
            questions = [f"{more}Is there a {thing} in the picture?" for thing in things]
            self.text = [self.family.asked(self.processor, question, 1) for question in questions]
            length = self._processed(self.images)["input_ids"].shape[1]
            if length > window or window > 2048:
                break
            more += "Look closely. " * (1 + window // 8)
        tokenizer = self.processor.tokenizer
        words = tokenizer(questions[1], add_special_tokens=False)["input_ids"]
        free = torch.tensor(sorted(set(words) - set(tokenizer.all_special_ids)))
        drawn = torch.randint(len(free), (len(things), STEPS), generator=torch.Generator().manual_seed(0))
        self.answer: list[list[int]] = free[drawn].tolist()

    def _processed(self, images: list[list[Image.Image]]) -> dict[str, Any]:
        made = self.processor(images=images, text=self.text, padding=True, padding_side="left", return_tensors="pt")
        device = device_of(self.model)
        return {key: on(value, device, self.model.dtype) for key, value in made.items()}

    def _generate(self, model: Any, inputs: dict[str, Any], **more: Any) -> Any:
        prompt = inputs["input_ids"].shape[1]
        return model.generate(  # forced by prefix_allowed_tokens_fn, since Janus's generate() drops a logits_processor
            **inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, num_beams=1,
            return_dict_in_generate=True, output_logits=True,
            prefix_allowed_tokens_fn=lambda row, ids: [self.answer[row][min(len(ids) - prompt, STEPS - 1)]], **more,
        )  # fmt: skip

    def _plain(self, inputs: dict[str, Any]) -> Tensor:
        """Return the logits of the answer by the model's own generate(), [B, steps, V]."""
        return torch.stack(self._generate(self.model, inputs).logits, dim=1)

    def _off(self, proof: Proof, execution: Any = "lazy", **how: Any) -> float:
        """Return how far a branch is from the truth at the steps where it runs, under the guard itself."""
        probe = _Probe(self.answer, **how)
        with _as_it_was(self.model, self.processor):
            guard_off(self.model, self.processor)
            install(self.model, self.processor, replace(self.family, proof=proof), probe)
            inputs = self._processed(self.images)
            try:
                self._generate(self.model, inputs, guard_execution=execution)
            except UnsupportedCallError as error:
                if not probe.calls:
                    raise self._refused(
                        f"its generate() calls the model 0 times for {STEPS} tokens, so that a branch has no place to "
                        "run. Such a family needs a decoding class of its own, as InstructBLIP has."
                    ) from error
                raise
        wanted = [r for r in range(len(self.answer)) if probe.only in (None, r)]
        steps = range(probe.start, STEPS + 1)
        mine = torch.stack([torch.stack([probe.logits[r, t] for t in steps]) for r in wanted])
        return _apart(mine, self.truth[wanted, probe.start - 1 :])

    def _holds(self, proof: Proof, **how: Any) -> bool:
        try:
            return self._off(proof, **how) < self.allowed
        except Exception:  # a cache that can't be joined, an argument that does not grow: not offered
            return False


def install(model: Any, processor: Any, family: Family, method: Method, execution: Any = "auto", **how: Any) -> None:
    """Make a plain model and a plain processor guarded ones, in place."""
    from lvlm_guard.families import processor as processors

    plain = type(model)
    how = {"resolve": lambda method: method, "verifier": None} | how
    setattr(model, guarded.STATE, guarded.Guard(method, family, processor, execution, plain, **how))
    model.__class__ = guarded.guarded_class(family.decoding(plain))
    setattr(processor, processors.STATE, processors.ProcessorGuard(family, type(processor)))
    processor.__class__ = processors.guarded_class(type(processor))


def guard_off(*things: Any) -> None:
    """Make models and processors plain again, in place."""
    for thing in things:
        state = vars(thing).get(guarded.STATE)
        if state is not None:
            thing.__class__ = state.plain
            delattr(thing, guarded.STATE)


@contextmanager
def _as_it_was(*things: Any) -> Iterator[None]:
    """Give a model and a processor back the guard that they have now, or none."""
    held = [(thing, type(thing), vars(thing).get(guarded.STATE)) for thing in things]
    try:
        yield
    finally:
        for thing, kind, state in held:
            guard_off(thing)
            thing.__class__ = kind
            if state is not None:
                setattr(thing, guarded.STATE, state)


def _painted(image: Image.Image) -> Image.Image:
    half = image.copy()
    ImageDraw.Draw(half).rectangle((image.width // 2, 0, image.width, image.height), fill=(0, 0, 0))
    return half


def _apart(mine: Tensor, truth: Tensor) -> float:
    """Return the largest difference of logits in units of their spread; inf for what is no number."""
    far = (mine.double() - truth.double()).abs().max() / truth.double().std()
    return float(far) if torch.isfinite(far) else float("inf")


# --- kept proofs


def _attention(model: Any) -> str | None:
    found: str | None = getattr(model.config.get_text_config(decoder=True), "_attn_implementation", None)
    return found


def _place(model: Any, processor: Any) -> Path:
    about = (
        plain_class(model).__name__, plain_class(processor).__name__, model.config.to_json_string(), str(model.dtype),
        str(_attention(model)), model.device.type, transformers.__version__, torch.__version__,
    )  # fmt: skip
    name = hashlib.blake2b("\n".join(about).encode(), digest_size=16).hexdigest()
    return Path(os.environ.get("LVLM_GUARD_CACHE") or caches()) / "lvlm-guard" / "proofs" / f"{name}.json"


_KEPT: dict[Path, Proof] = {}


def kept(model: Any, processor: Any) -> Proof | None:
    """Return the proof of such a model on such a machine: its class, configuration, dtype, kernel and versions."""
    place = _place(model, processor)
    if place not in _KEPT:
        with suppress(OSError, ValueError, TypeError, KeyError):  # none, or of another release
            _KEPT[place] = Proof(**json.loads(place.read_text())["proof"])
    return _KEPT.get(place)


def keep(model: Any, processor: Any, proof: Proof) -> None:
    """Keep a proof in memory, and on disk where that can be written."""
    place = _place(model, processor)
    _KEPT[place] = proof
    told = {"model": plain_class(model).__name__, "model_type": model.config.model_type, "proof": asdict(proof)}
    with suppress(OSError), whole(place, shared=True) as part:
        part.write_text(json.dumps(told))
