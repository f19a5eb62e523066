"""The trace of long answers: read by the tokens alone, and in memory that follows their number."""

import json
import random
import tracemalloc

import torch

from lvlm_guard.engine.method import Step
from lvlm_guard.engine.trace import GuardTrace, Recorder


def step(prefixes, requests, logits):
    return Step(
        logits=logits, raw=logits, t=torch.tensor([len(p) + 1 for p in prefixes]), request=requests,
        prefix=lambda row: prefixes[row], call=None,
    )  # fmt: skip


def recorded(length, rows=2):
    """A recorder after `length` steps of rows that go their own ways, and their answers."""
    recorder, draw = Recorder([]), random.Random(length)
    answers = [[] for _ in range(rows)]
    logits, decided = torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.bool)
    for _ in range(length):
        recorder.add(step([list(a) for a in answers], list(range(rows)), logits), logits, None, decided)
        for answer in answers:
            answer.append(draw.randrange(4))
    return recorder, answers


def test_the_memory_of_a_trace_grows_with_the_tokens_and_not_with_their_square():
    held = []
    for length in (500, 1000):
        tracemalloc.start()
        kept = recorded(length)
        held.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
        del kept
    assert held[1] < 2.5 * held[0]
    assert held[1] / 2 < 3 << 20  # a row of 1,000 tokens, in bytes


class Counted(int):
    """A token that counts how often one was hashed."""

    times = 0

    def __hash__(self):
        Counted.times += 1
        return int(self)


def test_the_work_of_a_trace_grows_with_the_tokens_and_not_with_their_square():
    """Of an answer that thinks first, 32,000 tokens long, the square took 6 seconds."""
    worked, draw = [], random.Random(0)
    for length in (200, 400):
        recorder, answer, logits = Recorder([]), [], torch.zeros(1, 4)
        Counted.times = 0
        for _ in range(length):
            recorder.add(step([list(answer)], [0], logits), logits, None, torch.tensor([False]))
            answer.append(Counted(draw.randrange(4)))
        assert len(recorder.read([answer], 1)[0]) == length
        worked.append(Counted.times)
    assert worked[1] < 2.5 * worked[0]


def test_a_step_is_found_by_its_request_and_the_tokens_before_it():
    recorder = Recorder([])
    undecided = torch.tensor([False, False])
    told = {  # the most likely token after each beginning of each request
        0: {(): 1, (1,): 2, (1, 2): 3, (2,): 0},
        1: {(): 2, (2,): 3, (1,): 3, (1, 2): 1},
    }
    for prefixes in ([(), ()], [(1,), (2,)], [(2,), (1,)], [(1, 2), (1, 2)]):  # beams that move, drafts that fail
        best = torch.tensor([told[request][prefix] for request, prefix in enumerate(prefixes)])
        logits = torch.nn.functional.one_hot(best, 4).float() * 9
        recorder.add(step([list(p) for p in prefixes], [0, 1], logits), logits.flip(-1), None, undecided)
    for request, answer in ((0, [1, 2, 3]), (1, [2, 3]), (1, [1, 2, 0])):
        answers = [[]] * request + [answer]
        read = recorder.read(answers, 1)[request]
        assert [token.token for token in read] == answer
        best = [told[request][tuple(answer[:t])] for t in range(len(answer))]
        assert [token.overruled for token in read] == best  # the assembly is the other way round


def test_a_token_after_a_beginning_that_no_step_saw_has_no_trace():
    recorder, answers = recorded(3, rows=1)
    other = [1 - answers[0][0] % 2, *answers[0][1:]]
    assert len(recorder.read([answers[0]], 1)[0]) == 3
    assert len(recorder.read([other], 1)[0]) == 1


def test_what_a_method_left_is_told_of_the_chosen_row_and_stands_beside_the_record_in_json():
    recorder, here = Recorder([]), step([[], []], [0, 1], torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    here.extra[1] |= {"seen": "the second", "token": "of no use"}
    recorder.add(here, here.logits, None, torch.ones(2, dtype=torch.bool))
    trace = GuardTrace("mine", {}, "single", True, steps=recorder.read([[0], [1]], 1), extra={"asked": 2})
    trace.leave([{"length": 1, "masks": 5}, {"length": 2}])
    assert [steps[0].extra for steps in trace.steps] == [{}, {"seen": "the second", "token": "of no use"}]
    told = json.loads(json.dumps(trace.only([1, 0]).to_dict()))
    assert (told["asked"], told["length"], told["masks"]) == (2, [2, 1], 0)
    assert [(step["token"], step.get("seen")) for (step,) in told["steps"]] == [(1, "the second"), (0, None)]
    assert GuardTrace("mine", {}, "single", True, extra={"lengths": []}).only([0]).extra == {"lengths": []}
