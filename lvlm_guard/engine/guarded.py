"""The guarded model: the same object with one more subclass on top.

The branches live in `__call__` rather than in `forward`, because accelerate's device maps and
`model.forward = torch.compile(model.forward)` put a `forward` on the instance, which would hide one of
ours without a word. Every branch goes through the model's plain `__call__`, hooks and all.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from traceback import walk_stack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.candidate_generator import CandidateGenerator

from lvlm_guard.engine.call import ACTIVE, Call, within
from lvlm_guard.engine.method import Method
from lvlm_guard.engine.pictures import VIEWS, Pictures
from lvlm_guard.engine.reading import Prepared
from lvlm_guard.engine.session import Execution, Session
from lvlm_guard.engine.subclass import once_per_class, shown_with, signed_as
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import MissingViewError, UnsupportedCallError

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from lvlm_guard.families.family import Family

STATE = "_lvlm_guard"
REFUSED = {
    "inputs_embeds": "A guarded generate() needs the prompt's tokens as input_ids: each branch embeds them with a "
    "picture of its own, which inputs_embeds no longer allows. Pass the processor's output by name: "
    "model.generate(**inputs).",
    "pixel_values_videos": "Videos can't be guarded: the methods are defined on pictures. Pass frames as pictures, or "
    "guard=False.",
    "mm_encoder_outputs": "mm_encoder_outputs holds encoded pictures, of which no second view can be made. Pass "
    "pixel_values.",
}
"""Arguments of generate() that can't be guarded, and why."""


AnswerCheck = Callable[[int, str], Mapping[str, Any]]
"""Looks at an answer, (request, text), and returns what `GuardTrace.extra` is to hold of it, by name."""


@dataclass(frozen=True)
class Guard:
    """What a guarded model carries."""

    method: Method  # that guards a call which names none
    family: Family
    processor: ProcessorMixin  # the guarded one
    execution: Execution
    plain: type[Any]  # the model's class without a guard
    resolve: Callable[[Any], Method]  # makes a method of what a call gives as `guard=`
    checks: Callable[[Any, Call, Method], AnswerCheck]
    """Makes of what a call gives as `verify=` what looks at its answers."""


def session_of(model: Any) -> Session | None:
    """Return the guarded call that this thread is in on this model, if any."""
    about, session = ACTIVE.get()
    return session if about is model else None


@once_per_class
def guarded_class(base: type[Any]) -> type[Any]:
    """Return the guarded subclass of a model class, always the same one."""

    names = list(inspect.signature(base.prepare_inputs_for_generation).parameters)[2:]  # behind input_ids

    class Guarded(base):  # type: ignore[misc]  # the base is only known at run time
        @shown_with(base.generate)
        def generate(
            self,
            inputs: Tensor | None = None,
            *args: Any,
            guard: Any = None,
            guard_views: Pictures | None = None,
            guard_execution: Execution | None = None,
            guard_steps: bool = True,
            verify: Any = False,
            **kwargs: Any,
        ) -> Any:
            """Answer as transformers' own generate() does, guarded.

            Args:
                guard: a decoding method for this call, such as `methods.AGLA(alpha=1.0)`; None for the one that
                    guard() was given, False for a plain call.
                guard_views: the pictures behind the inputs; the guarded processor gives them.
                guard_execution: how the other branches are run, "auto", "lazy" or "batched"; None for guard()'s.
                guard_steps: whether the trace, `.guard` of what `return_dict_in_generate=True` returns, tells of each
                    token; its counts and views are there without.
                verify: True, or a `lvlm_guard.verify.Verifier`, to check each object that an answer names; what it
                    finds is in `.guard.extra` of the output object, which then is returned. Or a check of your own,
                    with a `bound(call, method)` that returns it: (request, text) -> name -> plain data.

            Raises:
                UnsupportedCallError: the call can't be guarded, in part or at all; guard=False answers plainly.
                MissingViewError: `guard_views` are missing, or of other inputs.
                GuardError: a knob, a text or a matcher is amiss.
            """
            about, _ = ACTIVE.get()
            state: Guard = getattr(self, STATE)
            config = kwargs.get("generation_config") or (args[0] if args else None)
            # within a call of its own, drafting for itself or left out of the guard; or drafting for another model
            drafting = bool(getattr(config, "is_assistant", False))
            nested = guard is None and (about is self or drafting)
            seen = guard_views is not None or any(kwargs.get(key) is not None for key in state.family.image_keys)
            # no model hands guard_views on to its assistant, and a draft is asked for by what gathers candidates
            if nested and about is not self and seen and (guard_views is not None or not _is_asked_to_draft()):
                raise UnsupportedCallError(
                    "generation_config.is_assistant=True marks a model that drafts for another one, and a draft is "
                    "plain, but no other model asked for this one. Leave is_assistant out, or pass guard=False for a "
                    "plain answer."
                )
            given = (inputs, *args) if args or inputs is not None else ()  # some have another first argument
            if guard is False or nested:
                if verify and not nested:
                    raise UnsupportedCallError(
                        "guard=False leaves all of lvlm-guard out of a call, and verify=True with it. Check the plain "
                        "answer's text with lvlm_guard.verify.verify_answer, or leave guard=False out."
                    )
                with within(self, None):
                    return state.plain.generate(self, *given, **kwargs)
            if verify:
                kwargs["return_dict_in_generate"] = True  # there is no other place for what is found
            method = state.method if guard is None or guard is True else state.resolve(guard)
            config = config or self.generation_config
            told = kwargs.get("return_dict_in_generate", getattr(config, "return_dict_in_generate", False))
            prompt = inputs if inputs is not None else kwargs.get("input_ids")
            call = _call(self, method, config, prompt, guard_views, kwargs)
            session = Session(call, method, guard_execution or state.execution, bool(told and guard_steps))
            check = state.checks(verify, call, method) if verify else None
            try:
                with within(self, session):
                    output = super().generate(*given, **kwargs)
            finally:
                session.close()
            trace = session.finish(output)
            if check is not None:
                answers = session.answers(output.sequences)
                each = len(answers) // len(session.prompt)
                decode = functools.partial(call.tokenizer.decode, skip_special_tokens=True)
                trace.leave([check(i // each, str(decode(answer))) for i, answer in enumerate(answers)])
            if not isinstance(output, Tensor):
                output.guard = trace
            return output

        def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
            raise UnsupportedCallError(
                "Continuous batching keeps one paged cache and can't be guarded. Use generate() with a batch, serve "
                "the model with `lvlm-guard serve`, or unguard(model) first for plain answers."
            )

        @signed_as(base.prepare_inputs_for_generation)  # generate() reads its signature
        def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
            session = session_of(self)
            if session is not None:
                session.prepared = Prepared(input_ids, dict(zip(names, args, strict=False)) | kwargs)
            return super().prepare_inputs_for_generation(input_ids, *args, **kwargs)

        def _prepare_cache_for_generation(
            self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            made = super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
            session = session_of(self)
            if session is not None:
                session.starts(generation_config, model_kwargs)
            return made

        def _prefill(
            self, input_ids: Tensor, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> Any:
            session = session_of(self)
            plain = functools.partial(super()._prefill, input_ids, generation_config, model_kwargs, *args, **kwargs)
            if session is None or generation_config.prefill_chunk_size is None:
                return plain()
            return session.prefill_in_chunks(input_ids, model_kwargs, plain)

        def get_compiled_call(self, compile_config: Any) -> Any:
            compiled = super().get_compiled_call(compile_config)
            session = session_of(self)
            if session is None:
                return compiled
            return lambda **inputs: session.forward(compiled, inputs)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            # a compiled graph is the plain model's; its branches are run around it
            session = None if torch.compiler.is_compiling() else session_of(self)
            if session is None:
                return base.__call__(self, *args, **kwargs)
            return session.forward(functools.partial(base.__call__, self), kwargs)

    return Guarded


def _is_asked_to_draft() -> bool:
    """Tell whether assisted decoding is among the callers: the other model's own call may know nothing of a guard."""
    frames = walk_stack(sys._getframe(1))
    return any(isinstance(frame.f_locals.get("self"), CandidateGenerator) for frame, _ in frames)


def _call(model: Any, method: Method, config: Any, prompt: Any, views: Any, kwargs: dict[str, Any]) -> Call:
    """Check a call and return it; raises `UnsupportedCallError`, `MissingViewError` and as the method does."""
    state: Guard = getattr(model, STATE)
    family, pictures = state.family, None if views is None else Pictures.of(views)
    refused = [why for name, why in REFUSED.items() if kwargs.get(name) is not None]
    if "paged" in (kwargs.get("cache_implementation"), getattr(config, "cache_implementation", None)):
        refused.append(
            "cache_implementation='paged' switches to continuous batching, which can't be guarded. Leave it out."
        )
    if refused or prompt is None or prompt.is_floating_point():
        raise UnsupportedCallError(refused[0] if refused else REFUSED["inputs_embeds"])
    prompt = prompt[None] if prompt.ndim == 1 else prompt
    if pictures is not None and len(pictures) != len(prompt):
        raise MissingViewError(
            f"guard_views holds {len(pictures)} requests with {len(pictures.views())} pictures, the inputs have "
            f"{len(prompt)} requests: they belong to different inputs, or were sliced by hand. Call the guarded "
            "processor on just the requests of this call, and pass all that it returns."
        )
    given = {key: kwargs[key] for key in family.image_keys if kwargs.get(key) is not None}
    has_picture = family.has_picture(pictures, prompt, model.config)
    seen = any(torch.is_tensor(value) and value.is_floating_point() for value in given.values())
    guarded = any(has_picture)
    if guarded and not seen and pictures is None:
        raise MissingViewError(
            "The prompt holds image tokens, but no picture came with it, so it can't be guarded. To go on from "
            "past_key_values, pass the first turn's guard_views again: generate(input_ids=..., "
            'past_key_values=..., guard_views=inputs["guard_views"]).'
        )
    trace = GuardTrace(method=method.name, knobs=method.knobs(), execution="single", guarded=guarded)
    if not guarded:
        trace.note("No picture in the prompt, so there is nothing to guard: the answer is plain.")
    elif not all(has_picture):
        trace.note("Some prompts hold no picture; their answers are plain.")
    mask = kwargs.get("attention_mask")
    ids = prompt, torch.ones_like(prompt) if mask is None or mask.ndim != 2 else mask
    # a later turn: past_key_values holds the picture, the prompt its tokens
    tensors = given if seen or not guarded else None
    call = Call(model, family, state.processor, pictures, tensors, has_picture, trace, ids, model.dtype)
    if guarded:
        for view in call.pictures.views() if method.asks_about_pictures else ():
            if view.note is not None:
                trace.note(view.note)
        method.check(call)
    return call


__all__ = ["STATE", "VIEWS", "Guard", "guarded_class", "session_of"]
