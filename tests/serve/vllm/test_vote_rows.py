"""The processor's book-keeping on both interfaces: random comings and goings of requests, without an engine.

All logits are equal and every request has its own question score, so a row shows whose ballot it was given, and
which letters are voted on shows whose answer was read.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")

import numpy as np
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdateBuilder, MoveDirectionality

from lvlm_guard.errors import GuardError
from lvlm_guard.matching.platt import log_odds
from lvlm_guard.serve.vote.processor import VoteProcessor
from lvlm_guard.serve.wire import pack_scores

TOKENIZER = tiny.tokenizer(tiny.SPECIALS, image_token="<image>")
SLOTS, LENGTH = 6, 160
STARTS = ("", "y", "ye", "yes", "a ye", "a", "yes ", "x" * 70 + " y", "y" * 70)
steps = st.lists(
    st.tuples(
        st.sets(st.integers(0, SLOTS - 1)),  # who leaves
        st.lists(st.tuples(st.booleans(), st.sampled_from(STARTS)), max_size=3),  # who comes
        st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, SLOTS - 1)), max_size=2),  # who swap
        st.sampled_from("yesx "),  # what all say next
    ),
    min_size=1,
    max_size=8,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(folder)
    model = SimpleNamespace(
        logprobs_mode="processed_logprobs", skip_tokenizer_init=False, hf_config=None, tokenizer=str(folder),
        runner_type="generate", tokenizer_mode="hf", tokenizer_revision=None, trust_remote_code=False,
    )  # fmt: skip
    return SimpleNamespace(speculative_config=None, model_config=model, additional_config={})


class Request:
    def __init__(self, number, guarded, said):
        self.p = (1 + number % 400) / 1000
        self.guarded = guarded
        self.answer = TOKENIZER.encode(said, add_special_tokens=False)
        scores = pack_scores(["Is it a dog?"], [self.p])
        self.params = SamplingParams(
            extra_args={"guard": "vote", "guard_scores": scores, "guard_claim": "Is it a dog?"} if guarded else None
        )

    def row(self):
        """The assembled row over equal logits: only letters that start or go on "yes" have votes."""
        row = torch.zeros(len(TOKENIZER))
        word = TOKENIZER.decode(self.answer).rpartition(" ")[2]
        for token in range(len(tiny.SPECIALS), len(TOKENIZER)):
            letter = TOKENIZER.decode([token]).lower()
            if self.guarded and letter.isalpha() and "yes".startswith(word + letter):
                row[token] = log_odds(self.p)
        return row


def numbered(comings, count):
    return [Request(count + i, guarded, said) for i, (guarded, said) in enumerate(comings)]


@settings(deadline=None, max_examples=80)
@given(steps)
def test_v1_rows_keep_their_ballots_and_answers_when_requests_come_go_and_move(config, drawn):
    processor, builder = VoteProcessor(config, torch.device("cpu"), False), BatchUpdateBuilder()
    batch: list[Request | None] = []
    count = 0
    for leave, comings, swaps, letter in drawn:
        for row in sorted(leave):
            if row < len(batch):
                batch[row] = None
                builder.removed_append(row)
        for request in numbered(comings, count)[: SLOTS - sum(r is not None for r in batch)]:
            count += 1
            row = builder.pop_removed()
            if row is None:
                row = len(batch)
                batch.append(None)
            batch[row] = request
            builder.added.append((row, request.params, [9, 9], request.answer))
        while None in batch:  # the last ones fill the gaps, as `InputBatch.condense` does it
            if batch[-1] is None:
                batch.pop()
                continue
            gap, last = batch.index(None), len(batch) - 1
            batch[gap] = batch.pop()
            builder.moved.append((last, gap, MoveDirectionality.UNIDIRECTIONAL))
        for a, b in swaps:
            if a != b and max(a, b) < len(batch):
                batch[a], batch[b] = batch[b], batch[a]
                builder.moved.append((a, b, MoveDirectionality.SWAP))
        processor.update_state(builder.get_and_reset(len(batch)))
        if batch:
            out = processor.apply(torch.zeros(len(batch), len(TOKENIZER)))
            torch.testing.assert_close(out, torch.stack([request.row() for request in batch]))
        for request in batch:
            request.answer += TOKENIZER.encode(letter, add_special_tokens=False)


@settings(deadline=None, max_examples=80)
@given(steps, st.randoms(use_true_random=False))
def test_v2_slots_keep_their_ballots_and_rows_read_their_own_answers(config, drawn, random):
    tokens = torch.full((SLOTS, LENGTH), TOKENIZER.encode("y", add_special_tokens=False)[0], dtype=torch.int32)
    prompts = np.zeros(SLOTS, np.int32)
    states = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=tokens),
        prompt_len=SimpleNamespace(np=prompts),
        prefill_len=SimpleNamespace(np=prompts),
    )
    processor = VoteProcessor(config, states)
    taken: dict[int, Request] = {}
    count = 0
    for leave, comings, _, letter in drawn:
        for slot in leave:
            taken.pop(slot, None)
        free = [slot for slot in range(SLOTS) if slot not in taken]
        for slot, request in zip(free, numbered(comings, count), strict=False):
            count += 1
            prompts[slot] = random.randint(1, 60)
            taken[slot] = request
            assert processor.add_request(slot, request.params) == request.guarded
        rows = random.sample(sorted(taken), random.randint(0, len(taken)))
        for slot, request in taken.items():
            start = int(prompts[slot])
            tokens[slot, start : start + len(request.answer)] = torch.tensor(request.answer, dtype=torch.int32)
        ends = [int(prompts[slot]) + len(taken[slot].answer) for slot in rows]
        context = SimpleNamespace(idx_mapping_np=np.array(rows, np.int32), seq_lens_upper_bound_np=np.array(ends))
        if rows:
            out = processor.apply(torch.zeros(len(rows), len(TOKENIZER)), context)
            torch.testing.assert_close(out, torch.stack([taken[slot].row() for slot in rows]))
        for slot in rows:
            taken[slot].answer += TOKENIZER.encode(letter, add_special_tokens=False)


def test_a_request_taken_into_the_slot_of_a_guarded_one_is_not_guarded(config):
    prompts = np.zeros(1, np.int32)
    gpu = torch.zeros(1, 8, dtype=torch.int32)
    processor = VoteProcessor(
        config,
        SimpleNamespace(
            all_token_ids=SimpleNamespace(gpu=gpu),
            prompt_len=SimpleNamespace(np=prompts),
            prefill_len=SimpleNamespace(np=prompts),
        ),
    )
    assert processor.add_request(0, Request(1, True, "").params)
    assert not processor.add_request(0, Request(2, False, "").params)
    context = SimpleNamespace(idx_mapping_np=np.array([0]), seq_lens_upper_bound_np=np.array([0]))
    logits = torch.randn(1, len(TOKENIZER))
    assert torch.equal(processor.apply(logits.clone(), context), logits)


@pytest.mark.parametrize("change", [{"speculative_config": object()}, {"logprobs_mode": "raw_logprobs"}])
def test_an_engine_under_which_votes_would_go_wrong_is_refused(config, change):
    model = SimpleNamespace(**(vars(config.model_config) | change))
    wrong = SimpleNamespace(speculative_config=change.get("speculative_config"), model_config=model)
    with pytest.raises(GuardError, match=r"speculative|logprobs-mode"):
        VoteProcessor(wrong, torch.device("cpu"), False)


def test_a_token_that_is_not_known_yet_is_an_error_and_no_vote_on_another_word(config):
    processor, builder = VoteProcessor(config, torch.device("cpu"), False), BatchUpdateBuilder()
    builder.added.append((0, Request(1, True, "").params, [9], [7, -1]))
    processor.update_state(builder.get_and_reset(1))
    with pytest.raises(GuardError, match="drew last"):
        processor.apply(torch.zeros(1, len(TOKENIZER)))
