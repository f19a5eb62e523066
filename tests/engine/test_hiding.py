"""A branch that hides some of the picture, inside the model's own cache, against reading it all anew under a mask."""

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import any_families
import pytest
import tiny
import torch
from asking import ask, next_turn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import StaticCache

from lvlm_guard import guard
from lvlm_guard.engine.assembly import complement, cut
from lvlm_guard.engine.hiding import Hidden
from lvlm_guard.engine.method import Branch, Constrained
from lvlm_guard.engine.reading import encodes_first
from lvlm_guard.engine.rows import CACHE
from lvlm_guard.errors import KnobError, UnsupportedCallError

FAMILIES = ("llava", "llava_next", "qwen2_5_vl")
FUYU = pytest.param("fuyu", marks=pytest.mark.skipif(CACHE != "cache", reason="an older one's generate() fails"))
EXECUTIONS = ("lazy", "auto", "batched")
ROWS = (("What?", 1), ("Who is there, and why?", 2))
RUN: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}


@dataclass(frozen=True)
class Hide(Constrained):
    """Hides a random part of the picture; what its branch said is kept for the test."""

    name: ClassVar[str] = "hide"
    alpha: float = 1.0
    beta: float = 0.02
    share: float = 0.5
    said: list[tuple[tuple[int, ...], int, Tensor]] = field(default_factory=list, compare=False)

    def branches(self) -> tuple[Branch, ...]:
        return (Branch("local", hides=lambda call: hidden(call.image_positions, self.share)),)

    def assemble(self, step, branches):
        if branches is not None:
            rows = range(len(step.request))
            self.said.extend((tuple(step.prefix(row)), step.request[row], branches[0][row].clone()) for row in rows)
        other = step.logits if branches is None else branches[0]
        return cut(complement(step.logits, other, self.alpha), step.logits, self.kept(step))


def hidden(places: Tensor, share: float) -> Tensor:
    """Hide all but a share of a row's image tokens; which ones depends on how many there are alone."""
    found = torch.zeros_like(places)
    for row, marked in enumerate(places):
        columns = marked.nonzero().flatten()
        order = torch.randperm(len(columns), generator=torch.Generator().manual_seed(len(columns)))
        found[row, columns[order[round(len(columns) * share) :]]] = True
    return found


def pair_of(family="llava", seed=0, **knobs):
    made = family in FAMILIES
    pair = tiny.make(family, scale=4.0, seed=seed) if made else any_families.make(family, dtype=torch.float64)
    return guard(*pair, Hide(**knobs))


def anew(model: Any, inputs: Any, answer: list[int], row: int, hides: Tensor) -> Tensor:
    """Logits after an answer, all of it read at once: what stands behind the picture can't see what is hidden, [V]."""
    given = {key: value for key, value in inputs.items() if key != "guard_views"}
    prompt = given["input_ids"]
    with torch.no_grad():
        positions = model._prepare_position_ids_for_generation(prompt, dict(given))
        more = positions[..., -1:] + torch.arange(1, len(answer) + 1)
        given["position_ids"] = torch.cat([positions.expand(*positions.shape[:-2], *prompt.shape), more.expand(
            *positions.shape[:-2], len(prompt), len(answer))], -1)  # fmt: skip
        given["input_ids"] = torch.cat([prompt, torch.tensor([answer] * len(prompt), dtype=torch.long)], 1)
        size = given["input_ids"].shape[1]
        seen = torch.nn.functional.pad(given["attention_mask"].bool(), (0, len(answer)), value=True)
        sees = torch.ones(size, size).tril().bool()[None] & seen[:, None, :]
        last = (prompt == model.config.image_token_id).int().cumsum(-1).argmax(-1)
        behind = torch.arange(size)[None] > last[:, None]
        gone = torch.nn.functional.pad(hides, (0, len(answer)))
        sees = sees & ~(behind[:, :, None] & gone[:, None, :])
        sees |= torch.eye(size).bool()  # padding sees itself, so that it is no row of NaN
        given["attention_mask"] = torch.zeros(sees.shape, dtype=torch.float64).masked_fill(~sees, -1e300)[:, None]
        if "mm_token_type_ids" in given:
            given["mm_token_type_ids"] = torch.nn.functional.pad(given["mm_token_type_ids"], (0, len(answer)))
        return model(**given, use_cache=False).logits[row, -1]


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", [*FAMILIES, "qwen2_5_omni_thinker", FUYU])
def test_its_logits_are_those_of_reading_everything_anew_under_a_mask(family, execution):
    model, _ = pair_of(family)
    inputs = ask((model, _), *ROWS)
    method = Hide()
    out = model.generate(**inputs, **RUN, guard=method, guard_execution=execution)
    assert out.guard.execution == {"auto": "joined"}.get(execution, execution)
    hides = hidden(inputs["input_ids"] == model.config.image_token_id, 0.5)
    plain = guard(model, _, "apc")[0]
    checked = 0
    for answer, request, logits in method.said[:12]:
        expected = anew(plain, inputs, list(answer), request, hides)
        assert torch.allclose(logits, expected, atol=1e-8)
        whole = anew(plain, inputs, list(answer), request, torch.zeros_like(hides))
        checked += not torch.allclose(whole, expected, atol=1e-3)
    assert checked > 4


@pytest.mark.parametrize("family", FAMILIES)
def test_every_way_of_decoding_gives_the_same_tokens_in_every_execution(family):
    pair = pair_of(family)
    model, _ = pair
    one = ask(pair, ROWS[1])
    assistant = copy.deepcopy(model)
    for parameter in assistant.parameters():
        parameter.data *= 0.98
    ways = {
        "greedy": (ask(pair, *ROWS), {}),
        "beams": (ask(pair, *ROWS), {"num_beams": 3}),
        "returned": (ask(pair, *ROWS), {"do_sample": True, "num_return_sequences": 2}),
        "prompt lookup": (one, {"prompt_lookup_num_tokens": 3}),
        "assistant": (one, {"assistant_model": assistant}),
    }
    if encodes_first(model):  # an older transformers reads a prompt in chunks without looking at its picture
        ways["chunks"] = (ask(pair, *ROWS), {"prefill_chunk_size": 7})
    for way, (inputs, extra) in ways.items():
        found = []
        for execution in EXECUTIONS:
            torch.manual_seed(3)
            out = model.generate(**inputs, **{**RUN, **extra}, guard_execution=execution)
            found.append(out.sequences)
            assert out.guard.guarded
            assert out.guard.local_forwards > 0, way
        assert all(torch.equal(tokens, found[0]) for tokens in found), way
        torch.manual_seed(3)
        plain = model.generate(**inputs, **{**RUN, **extra}, guard=False).sequences
        assert not torch.equal(plain, found[0])


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_a_request_is_answered_in_a_batch_as_alone_with_several_pictures_and_with_none(execution):
    pair = pair_of()
    model, _ = pair
    rows = (("What?", 1, 2), ("Who is there, and why?", 3), ("Nothing to see",), ("Where?", 4))
    inputs = ask(pair, *rows)
    together = model.generate(**inputs, **RUN, guard_execution=execution).sequences[:, inputs["input_ids"].shape[1] :]
    for row, tokens in zip(rows, together, strict=True):
        alone = ask(pair, row)
        answer = model.generate(**alone, **RUN, guard_execution=execution).sequences[0, alone["input_ids"].shape[1] :]
        assert torch.equal(tokens, answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_hidden_is_the_global_branch(family):
    pair = pair_of(family)
    method = Hide(share=1.0)
    inputs = ask(pair, *ROWS)
    out = pair[0].generate(**inputs, **RUN, guard=method, output_logits=True)
    assert torch.equal(out.sequences, pair[0].generate(**inputs, **RUN, guard=False).sequences)
    steps = {(len(answer), request): logits for answer, request, logits in method.said}
    for (step, request), logits in steps.items():
        plain = anew(pair[0], inputs, out.sequences[request, inputs["input_ids"].shape[1] :][:step].tolist(), request,
                     torch.zeros_like(inputs["input_ids"], dtype=torch.bool))  # fmt: skip
        assert torch.allclose(logits, plain, atol=1e-8)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_turn_from_the_cache_gives_the_tokens_of_the_whole_conversation(family, execution):
    pair = pair_of(family)
    model, _ = pair
    inputs = ask(pair, ROWS[1])
    out = model.generate(**inputs, **RUN, guard_execution=execution)
    turn, cached = next_turn(inputs, out.sequences)
    fresh = model.generate(**turn, **RUN)
    again = model.generate(**cached, **RUN, guard_execution=execution, **{CACHE: copy.deepcopy(out.past_key_values)})
    assert torch.equal(again.sequences, fresh.sequences)
    assert again.guard.local_forwards > 0


def test_a_static_cache_is_shared_too_and_comes_back_as_it_was():
    pair = pair_of()
    model, _ = pair
    inputs = ask(pair, *ROWS)
    expected = model.generate(**inputs, **RUN).sequences
    for execution in EXECUTIONS:
        cache = StaticCache(config=model.config.get_text_config(decoder=True), max_cache_len=160)
        out = model.generate(**inputs, **RUN, guard_execution=execution, **{CACHE: cache})
        assert torch.equal(out.sequences, expected)
        assert out.guard.execution == "lazy"
        assert any("can't be stacked on a StaticCache" in note for note in out.guard.notes) == (execution == "batched")
        assert type(cache) is StaticCache


def test_what_has_no_cache_to_share_is_refused_before_the_first_token():
    pair = pair_of()
    model, processor = pair
    with pytest.raises(UnsupportedCallError, match=r"no cache .*a second picture, such as 'agla'"):
        model.generate(**ask(pair, ROWS[0]), **RUN, use_cache=False)
    prompt = tiny.prompt(processor, "What?")
    ends = processor(images=tiny.picture(1), text=prompt[: prompt.index("<image>") + 7], return_tensors="pt")
    with pytest.raises(UnsupportedCallError, match="ends with its picture"):
        model.generate(**ends.to(torch.float64), **RUN, guard_execution="batched")


def test_a_branch_changes_something_and_what_hides_nothing_else():
    for wrong in ({}, {"pixels": print, "hides": print}, {"prompt": print, "hides": print}):
        with pytest.raises(KnobError, match="hides= alone"):
            Branch("local", **wrong)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_without_their_hidden_columns_keep_all_others_in_order(data):
    rows, length, more = data.draw(st.integers(1, 4)), data.draw(st.integers(4, 12)), data.draw(st.integers(0, 3))
    pictures, hides, seen = (torch.zeros(rows, length, dtype=torch.bool) for _ in range(3))
    for row in range(rows):
        padding = data.draw(st.integers(0, length - 3))
        first = data.draw(st.integers(padding, length - 2))
        last = data.draw(st.integers(first, length - 2))
        seen[row, padding:] = True
        pictures[row, first : last + 1] = True
        hides[row, first : last + 1] = torch.tensor(data.draw(st.lists(st.booleans(), min_size=last - first + 1,
                                                                       max_size=last - first + 1)))  # fmt: skip
    branch = Hidden(hides, pictures, seen)
    ids = torch.arange(rows * (length + more)).view(rows, -1)
    mask = torch.nn.functional.pad(seen.long(), (0, more), value=1)
    positions = torch.arange(length + more).expand(rows, -1)
    read, found = branch.read(ids, {"attention_mask": mask, "position_ids": positions, "use_cache": True})
    for row in range(rows):
        kept = torch.nn.functional.pad(seen & ~hides, (0, more), value=True)[row]
        here = found["attention_mask"][row].bool()
        assert read[row][here].tolist() == ids[row][kept].tolist()
        assert found["position_ids"][row][here].tolist() == positions[row][kept].tolist()
