"""Choosing among several answers of one call."""

import pytest
import torch
from matchers import Brightness
from PIL import Image

from lvlm_guard.engine.trace import GuardTrace, TokenTrace
from lvlm_guard.errors import KnobError
from lvlm_guard.verify import ranked
from lvlm_guard.verify.check import Checked
from lvlm_guard.verify.ranking import sentences

IMAGE = Image.new("RGB", (8, 8))


class Comparing(Brightness):
    """Likes what holds an x."""

    def similarity(self, images, texts):
        return torch.tensor([[float(text.count("x")) for text in texts] for _ in images])


def trace_of(*log_probs):
    steps = [[TokenTrace(7, {"assembled": p}, None, True, None) for p in row] for row in log_probs]
    verdicts: list[list[Checked]] = [[] for _ in steps]
    return GuardTrace("vote", {}, "single", True, steps=steps, extra={"verdicts": verdicts})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog. A cat!", ["A dog.", "A cat!"]),
        ("a dog , a cat", ["a dog , a cat"]),
        ("...", []),
        ("One?\nTwo", ["One?", "Two"]),
    ],
)
def test_sentences_end_at_marks_and_lines_and_hold_a_word(text, expected):
    assert sentences(text) == expected


def test_the_mean_over_sentences_decides_where_the_model_is_not_asked():
    order = ranked(trace_of([-1], [-1]), ["x. none.", "x."], [IMAGE], Comparing(), alpha=0)
    assert [one.index for one in order] == [1, 0]
    assert [one.candidate.match for one in order] == [1.0, 0.5]


def test_the_mean_log_probability_decides_where_the_matcher_is_not_asked():
    order = ranked(trace_of([-3, -1], [-1.5, None, -1.5]), ["x.", "none."], [IMAGE], Comparing(), alpha=1)
    assert [one.candidate.log_prob for one in order] == [-1.5, -2]


def test_an_empty_answer_is_ranked_and_not_a_crash():
    order = ranked(trace_of([], [-1]), ["", "x."], [IMAGE], Comparing())
    assert {one.index for one in order} == {0, 1}


def test_a_trace_of_other_answers_is_refused():
    with pytest.raises(KnobError, match="give the texts of all sequences"):
        ranked(trace_of([-1]), ["a", "b"], [IMAGE], Comparing())
