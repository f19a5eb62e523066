"""`vote` in real vLLM engines, on both model runners, against `lvlm_guard`'s own `generate()`.

Every token must be the same, and every log-probability within 1e-3 of the assembled distribution's.
"""

from __future__ import annotations

import functools

import pytest

pytest.importorskip("vllm")

import checkpoints
import tiny
import torch
import vote_engine
from matchers import Brightness
from PIL import Image

from lvlm_guard import embedded, guard, methods, unguard
from lvlm_guard.embedded import world
from lvlm_guard.matching import load_matcher
from lvlm_guard.pretrained import load_model
from lvlm_guard.serve.vote import ballot as reading

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PAIRS = tuple(sorted({a + b for a in LETTERS for b in LETTERS[::3]}))  # random answers start many of these
KNOBS = ((1.0, 0.1), (4.0, 0.1), (1.0, 0.03), (0.3, 0.1), (0.0, 0.3))
"""Of requests: lambda and a cut that no token of these answers lies on, where rounding alone would decide."""
STEPS = 24


class Model:
    """A checkpoint, its matcher and what is voted on; answers in transformers are remembered."""

    def __init__(self, folder, names, path, pair, matcher):
        self.path, self.names, self.matcher = path, names, matcher
        self.model, self.processor = pair
        self.model.generation_config.suppress_tokens = None
        self.objects = folder / "objects.txt"
        self.objects.write_text("\n".join(names))
        self.expected = functools.lru_cache(maxsize=None)(self._expected)

    def request(self, seed, question, guarded=True, lam=1.0, beta=0.1, steps=STEPS):
        picture = self.picture(seed)
        sampling = {"max_tokens": steps}
        if guarded:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(reading.OBJECTS, str(self.objects))
                claims = reading.claims_of(question)
            scores = dict(zip(claims, self.matcher.support(picture, claims).tolist(), strict=True))
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(reading.OBJECTS, str(self.objects))
                sampling["extra_args"] = reading.ballot_arguments(methods.Vote(lam=lam, beta=beta), question, scores)
        key = (seed, question, guarded, lam, beta, steps)
        return {"prompt": self.prompt(question), "picture": picture, "sampling": sampling, "key": key}

    def prompt(self, question):
        return tiny.prompt(self.processor, question)

    def picture(self, seed):
        return tiny.picture(seed, 112, 112)

    def _expected(self, seed, question, guarded, lam, beta, steps):
        method = methods.Vote(matcher=self.matcher, objects=self.names, lam=lam, beta=beta)
        if guarded:
            guard(self.model, self.processor, method)
        inputs = self.processor(images=[self.picture(seed)], text=[self.prompt(question)], return_tensors="pt")
        wanted = {"max_new_tokens": steps, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}
        out = self.model.generate(**inputs, **wanted)
        if guarded:
            unguard(self.model)
            unguard(self.processor)
        start = inputs["input_ids"].shape[1]
        tokens = out.sequences[0, start:].tolist()
        logprobs = [float(s.log_softmax(-1)[0, token]) for s, token in zip(out.scores, tokens, strict=True)]
        return inputs["input_ids"][0].tolist(), tokens, logprobs

    def wrong(self, requests, said):
        """Return what differs, one sentence a request."""
        found = []
        for request, answer in zip(requests, said, strict=True):
            prompt, tokens, logprobs = self.expected(*request["key"])
            assert answer["prompt"] == prompt
            if answer["tokens"] != tokens:
                found.append(f"{request['key']}: {answer['tokens']} for {tokens}")
            else:
                gap = max(abs(a - b) for a, b in zip(answer["logprobs"], logprobs, strict=True))
                if gap > 1e-3:
                    found.append(f"{request['key']}: log-probabilities differ by {gap:.1e}")
        return found

    def overruled(self, requests):
        """Return how many guarded requests are answered otherwise than plain."""
        plain = [self.expected(*request["key"][:2], False, 1.0, 0.1, request["key"][-1])[1] for request in requests]
        return sum(
            request["key"][2] and self.expected(*request["key"])[1] != tokens
            for request, tokens in zip(requests, plain, strict=True)
        )


class World(Model):
    def picture(self, seed):
        return Image.fromarray(scenes().image[seed])


@functools.lru_cache(maxsize=1)
def scenes():
    return world.scenes("test_cap", 32)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    model, processor = load_model("embedded")
    matcher = load_matcher(None, model=model)
    return World(tmp_path_factory.mktemp("world"), world.CLASSES, embedded.MODEL, (model, processor), matcher)


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    pair = checkpoints.tiny_llava(folder / "model")
    return Model(folder, PAIRS, folder / "model", pair, Brightness())


def in_the_world(model, count, ragged=False):
    """Captions and questions, guarded with several knobs and plain."""
    return [
        model.request(
            i % 16,
            world.question("knife" if i % 2 else "cow") if i % 3 == 2 else world.CAPTION_PROMPT,
            i % 4 > 0,
            *KNOBS[i % 5],
            steps=2 + 7 * i % 23 if ragged else STEPS,
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=["v1", "v2"])
def served(request, drawn, tmp_path_factory):
    """Four rounds on one engine: mixed, the same again, 32 ragged ones at once, and after refusals."""
    mixed, crowd = in_the_world(drawn, 12), in_the_world(drawn, 32, ragged=True)
    good = mixed[1]["sampling"]["extra_args"]
    bad = [
        mixed[1] | {"bad": True, "sampling": {"max_tokens": 4, **sampling}}
        for sampling in (
            {"extra_args": {"guard": "vote"}},
            {"extra_args": good | {"guard_scores": good["guard_scores"][:-4]}},
            {"extra_args": good | {"guard_beta": 2}},
            {"extra_args": good | {"guard_lambda": 2}},
            {"extra_args": good, "frequency_penalty": 0.5},
        )
    ]
    rounds = [mixed, mixed, crowd, [*bad, *mixed[:3]]]
    out = vote_engine.answers(
        tmp_path_factory.mktemp("engine"), drawn.path, rounds, request.param, str(drawn.objects), **vote_engine.GUARDED
    )
    assert ("cpu_model_runner" in out["runner"]) == (request.param == "v1")
    return rounds, out


def test_guarded_and_plain_requests_of_a_batch_are_answered_as_by_transformers(drawn, served):
    rounds, out = served
    assert drawn.wrong(rounds[0], out["rounds"][0]) == []
    captions = [request for request in rounds[0] if request["key"][1] == world.CAPTION_PROMPT]
    assert drawn.overruled(captions) > 2
    assert drawn.overruled(rounds[0]) > drawn.overruled(captions)


def test_a_prefix_hit_changes_nothing(drawn, served):
    rounds, out = served
    assert drawn.wrong(rounds[1], out["rounds"][1]) == []
    assert min(answer["cached"] for answer in out["rounds"][1]) >= 32


def test_32_requests_that_come_and_go_are_each_voted_on_by_their_own_scores(drawn, served):
    rounds, out = served
    assert drawn.wrong(rounds[2], out["rounds"][2]) == []


def test_a_request_without_scores_or_with_wrong_knobs_is_refused_and_the_engine_goes_on(drawn, served):
    rounds, out = served
    refused = [answer.get("refused", "") for answer in out["rounds"][3][:5]]
    for said, what in zip(
        refused, ["without guard_scores", "scores", "beta", "guard_lambda", "Penalties"], strict=True
    ):
        assert what in said
    assert drawn.wrong(rounds[3][5:], out["rounds"][3][5:]) == []


def test_plain_requests_are_answered_as_by_an_engine_without_the_processor(drawn, served, tmp_path):
    rounds, out = served
    plain = [[request for request in rounds[0] if not request["key"][2]]]
    runner = "v1" if "cpu_model_runner" in out["runner"] else "v2"
    bare = vote_engine.answers(tmp_path, drawn.path, plain, runner)
    with_it = [a for request, a in zip(rounds[0], out["rounds"][0], strict=True) if not request["key"][2]]
    assert [a["tokens"] for a in with_it] == [a["tokens"] for a in bare["rounds"][0]]
    for one, other in zip(with_it, bare["rounds"][0], strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-5)


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize(
    ("options", "preempts"),
    [({"max_num_batched_tokens": 32, "max_num_seqs": 4}, False), ({"num_gpu_blocks_override": 14}, True)],
)
def test_chunks_of_a_prompt_and_preemption_change_nothing(random, tmp_path, runner, options, preempts):
    questions = ["Describe the picture. " * 2, "Is there a bright spot in the picture?"]
    requests = [random.request(i, questions[i % 3 // 2], i % 4 > 0, *KNOBS[i % 3], steps=48) for i in range(10)]
    out = vote_engine.answers(
        tmp_path, random.path, [requests], runner, str(random.objects), **vote_engine.GUARDED, **options
    )
    assert random.wrong(requests, out["rounds"][0]) == []
    assert random.overruled(requests) > 2
    assert (out["preempted"] > 0) == preempts


def test_an_engine_that_would_report_other_log_probabilities_does_not_start(random, tmp_path):
    with pytest.raises(AssertionError, match="--logprobs-mode processed_logprobs"):
        vote_engine.answers(tmp_path, random.path, [], logprobs_mode="raw_logprobs", **vote_engine.GUARDED)


def test_the_random_model_says_other_things_of_other_pictures(random):
    answers = {tuple(random.expected(seed, "Describe.", False, 1.0, 0.1, 8)[1]) for seed in range(4)}
    assert len(answers) > 1
    assert all(torch.isfinite(parameter).all() for parameter in random.model.parameters())
