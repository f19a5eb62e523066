"""The score of a question: each method's own logits before any cut, against branches recomputed from scratch."""

import json
from dataclasses import replace

import numpy as np
import pytest
import recompute
import tiny
import torch
from matchers import Brightness
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lvlm_guard import guard, methods, unguard
from lvlm_guard.engine.call import Call
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.evals.decoders.decoder import SAMPLED, Decoder
from lvlm_guard.evals.decoders.logits import first_token_scores, odds_of, spellings
from lvlm_guard.evals.decoders.matchers import RandomMap
from lvlm_guard.evals.decoders.published import AGLAOfficial
from lvlm_guard.evals.infer import generate
from lvlm_guard.evals.infer.generate import Asker, matcher_answers, prepare, prepare_run
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.matching import load_matcher, local_view
from lvlm_guard.matching.platt import log_odds

WORDS = {"yes": (60, 70, 71), "no": (61, 80)}  # a tiny model's tokens say nothing: any will do


def score_of(z, words=WORDS):
    """The definition written out, in float64 numpy: z [V]."""
    odds = np.exp(np.asarray(z, dtype=np.float64) - np.max(z))
    yes, no = (odds[list(words[word])].sum() for word in ("yes", "no"))
    return np.log(yes) - np.log(no), (yes + no) / odds.sum()


def near(one):
    """What is stored, as near as float32 logits in the hundreds allow."""
    return pytest.approx(one, rel=3e-3, abs=1e-3)


# --- which tokens are yes and no


def test_every_spelling_of_yes_and_no_counts_and_nothing_else():
    pieces = [
        "<unk>",
        "yes",
        "Yes",
        "YES",
        "▁yes",
        "▁Yes",
        "no",
        "▁No",
        "▁NO",
        "not",
        "▁know",
        "yes,",
        "ye",
        "n",
        "Yesterday",
    ]
    whole = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    whole.decoder = decoders.Metaspace()
    found = spellings(PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>"))
    assert [[pieces[i] for i in found[word]] for word in ("yes", "no")] == [pieces[1:6], pieces[6:9]]


def test_byte_level_vocabularies_and_the_embedded_model_s_have_theirs():
    pieces = ["<unk>", "Yes", "ĠYes", "Ġyes", "No", "Ġno", "ĠNo", "Ġnor", "ÂłNo", "ĊNo"]
    whole = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    whole.decoder = decoders.ByteLevel()
    found = spellings(PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>"))
    assert [[pieces[i] for i in found[word]] for word in ("yes", "no")] == [pieces[1:4], [*pieces[4:7], *pieces[8:]]]


def test_scores_are_the_definition_in_float32_whatever_the_model_s_dtype():
    z = torch.randn(5, 90, generator=torch.Generator().manual_seed(0)) * 4
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        rounded = z.to(dtype)
        for (s, mass), row in zip(first_token_scores(rounded, WORDS), rounded.double().numpy(), strict=True):
            assert (s, mass) == pytest.approx(score_of(row), rel=1e-5, abs=1e-6)


def test_a_vocabulary_without_a_word_or_logits_that_forbid_one_give_no_score():
    z = torch.zeros(2, 90)
    assert first_token_scores(z, {"yes": (), "no": (1,)}) == [(None, None)] * 2
    assert first_token_scores(z, {"yes": (95,), "no": (1,)}) == [(None, None)] * 2
    z[0, [61, 80]] = -torch.inf
    (cut, _), (whole, _) = first_token_scores(z, WORDS)
    assert cut is None
    assert whole == pytest.approx(np.log(3 / 2))


def test_a_matcher_s_probability_is_its_score_and_stays_finite():
    assert odds_of(0.5) == 0
    assert odds_of(0.9) == pytest.approx(np.log(9))
    assert -100 < odds_of(0.0) < -80
    assert 16 < odds_of(1.0) < 18


# --- each method, from scratch


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request):
    model, processor = tiny.make(request.param, scale=5.0)
    model.family = request.param
    yield guard(model, processor, methods.AGLA(matcher=Brightness()))
    unguard(model)
    unguard(processor)


def tiny_task():
    asked = [("Is there a dog?", 11), ("Is a cat in this picture, and where does it stand?", 12), ("Is it red?", 13)]
    items = [Item(str(i), str(i), text, (tiny.picture(seed),), truth="yes") for i, (text, seed) in enumerate(asked)]
    return EvalTask("t", "pope", items, 5)


def asker(pair, monkeypatch, **guards):
    monkeypatch.setattr(generate, "spellings", lambda _: WORDS)
    decoders = {name: Decoder(name, name, (made,)) for name, made in guards.items()}
    return Asker(*pair, None, decoders)


def allowed(model, z):
    """Logits [1, V] as [V], less what the model's own settings never let it say."""
    z[:, list(model.generation_config.suppress_tokens or [])] = -torch.inf
    return z[0].numpy()


def from_scratch(pair, item, method):
    """Logits [V] of a method at the first token: two plain calls without a cache, the formula written out."""
    model, processor = pair
    inputs = prepare(processor, [item]).to(torch.float64)
    state = {key: value for key, value in inputs.items() if key != "guard_views"}
    if method.name == "vcd":
        family = model._lvlm_guard.family
        tensors = {key: inputs[key] for key in family.image_keys}
        trace = GuardTrace("vcd", {}, "single", True)
        other = method.branches()[0].pixels(Call(model, family, processor, None, tensors, [True], trace))
    else:
        (view,) = inputs["guard_views"].views()
        frame = "squashed" if model.family in ("llava", "instructblip") else "original"
        match = method.matcher([view.image], [view.text])[0]
        seen = local_view(view.image, match, frame)
        other = {"pixel_values": processor.image_processor(images=[seen], return_tensors="pt")["pixel_values"].double()}
    with torch.inference_mode():
        plain, second = (recompute.logits_of(model, given) for given in (state, state | other))
    return allowed(model, recompute.published(method.name.removesuffix("-official"), plain, second, method.alpha, 0))


METHODS = {
    "agla": methods.AGLA(matcher=Brightness()),
    "agla-weak": methods.AGLA(matcher=Brightness(), alpha=0.7, beta=0.99),
    "agla-official": AGLAOfficial(matcher=Brightness()),
    "agla-random": methods.AGLA(matcher=RandomMap(Brightness(), 3)),
    "vcd": methods.VCD(beta=1.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_score_is_its_formula_over_branches_recomputed_from_scratch(pair, monkeypatch, name):
    task = tiny_task()
    (said,) = asker(pair, monkeypatch, **METHODS).ask(task, task.items, [(name, 0)])
    for item, one in zip(task.items, said, strict=True):
        assert (one.score, one.mass) == near(score_of(from_scratch(pair, item, METHODS[name])))


def test_plain_decoders_tell_the_model_s_own_score_sampled_or_cut_or_not(pair, monkeypatch):
    task, model = tiny_task(), pair[0]
    ready = asker(pair, monkeypatch, greedy=False, apc=methods.APC(beta=0.9))
    for name in ("greedy", "apc"):
        ready.decoders[f"{name}-sample"] = replace(ready.decoders[name], name=f"{name}-sample", options=dict(SAMPLED))
    told = ready.ask(task, task.items, [(name, 0) for name in ready.decoders])
    for i, item in enumerate(task.items):
        inputs = prepare(pair[1], [item]).to(torch.float64)
        del inputs["guard_views"]
        with torch.inference_mode():
            expected = score_of(allowed(model, recompute.logits_of(model, dict(inputs))))
        for said in told:
            assert (said[i].score, said[i].mass) == near(expected)


@pytest.mark.slow
def test_the_scoring_call_changes_neither_answers_nor_costs_and_captions_have_none(pair, monkeypatch):
    task = tiny_task()
    ready = asker(pair, monkeypatch, greedy=False, **METHODS)
    todo = [(name, 0) for name in ready.decoders]
    scored, plain = ready.ask(task, task.items, todo), ready.ask(replace(task, kind="stock"), task.items, todo)
    for ours, theirs in zip(scored, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.score is not None
            assert (other.score, other.mass) == (None, None)
            costs = {"seconds": 0.0, "peak_mib": None, "score": None, "mass": None}
            assert replace(one, **costs) == replace(other, **costs)


def test_decoders_of_one_method_share_one_scoring_call_a_block(pair, monkeypatch):
    task = tiny_task()
    ready = asker(pair, monkeypatch, agla=METHODS["agla"], wide=methods.AGLA(matcher=METHODS["agla"].matcher, beta=0.1))
    ready.decoders["agla-sample"] = replace(ready.decoders["agla"], name="agla-sample", options=dict(SAMPLED))
    calls = []
    ask = Asker._generate
    monkeypatch.setattr(
        Asker, "_generate", lambda *given, **more: (calls.append(more["guard"]), ask(*given, **more))[1]
    )
    ready._warm.append("agla")
    names = ("agla", "agla-sample", "wide")
    told = [ready.ask(task, task.items, [(name, seed)])[0] for name in names for seed in (0, 1)]
    assert [call for call in calls if call.beta == 0] == [methods.AGLA(matcher=METHODS["agla"].matcher, beta=0)]
    assert len({tuple(one.score for one in said) for said in told}) == 1
    ready.ask(task, task.items[1:], [("agla", 0)])
    assert sum(call.beta == 0 for call in calls) == 2


# --- the embedded model, where scores mean something


@pytest.fixture(scope="module")
def prepared():
    return prepare_run(Settings(limit=3, captions=4, seeds=2, batch=4))


def ask(prepared, name, items=None, seed=0):
    task = next(task for task in prepared.tasks if task.kind == "pope")
    (said,) = prepared.answerer.ask(task, task.items if items is None else items, [(name, seed)])
    return task.items if items is None else items, said


def test_a_vote_counts_for_decided_questions_too(prepared):
    items, greedy = ask(prepared, "greedy")
    _, vote = ask(prepared, "vote")
    matcher = load_matcher(None, model=prepared.answerer.model)
    decided = 0
    for item, plain, voted in zip(items, greedy, vote, strict=True):
        support = log_odds(float(matcher.support(item.pictures()[0], [item.prompt])[0]))
        assert voted.score == pytest.approx(plain.score + support, abs=2e-3)
        decided += abs(plain.score) > np.log(10)  # the other word is below beta .1: no vote changed this answer
        if abs(plain.score) > np.log(10) + 0.01:
            assert voted.text == plain.text
    assert 0 < decided < len(items)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["agla-sample", "vcd", "apc(0.1)"])
def test_a_score_has_the_same_bits_whoever_was_asked_before(prepared, name):
    ready = prepared.answerer
    _, after = ask(prepared, name)
    ready._scored.clear()
    _, alone = ask(prepared, name)
    for earlier in ("greedy", "agla", "vote"):
        ask(prepared, earlier)
    ready._scored.clear()
    _, again = ask(prepared, name)
    assert [one.score for one in after] == [one.score for one in alone] == [one.score for one in again]


@pytest.mark.parametrize("name", ["greedy", "agla", "agla-random", "vote", "vcd", "matcher"])
def test_a_score_does_not_depend_on_the_batch(prepared, name):
    items, together = ask(prepared, name, seed=0)
    alone = [ask(prepared, name, [item])[1][0] for item in items[:8]]
    for one, other in zip(together[:8], alone, strict=True):
        assert one.text == other.text
        assert (one.score, one.mass) == pytest.approx((other.score, other.mass), abs=1e-3)


def test_greedy_s_text_follows_its_score_and_yes_and_no_cover_what_it_says(prepared):
    _, said = ask(prepared, "greedy")
    assert [one.text == "yes" for one in said] == [one.score > 0 for one in said]
    assert min(one.mass for one in said) > 0.9
    assert json.loads(json.dumps({word: list(ids) for word, ids in prepared.answerer.words.items()}))
    tokenizer = prepared.answerer.processor.tokenizer
    assert {word: [tokenizer.decode([i]) for i in ids] for word, ids in prepared.answerer.words.items()} == {
        "yes": ["yes"],
        "no": ["no"],
    }


def test_the_matcher_s_score_is_the_logit_of_its_probability(prepared):
    task = prepared.tasks[0]
    matcher = prepared.answerer.matcher
    for item, one in zip(task.items[:6], matcher_answers(matcher, task.items[:6]), strict=True):
        p = float(matcher.support(item.pictures()[0], [item.prompt])[0])
        assert one.score == pytest.approx(np.log(p / (1 - p)), rel=1e-4)
        assert one.mass == 1
        assert (one.score > 0) == (one.text == "yes")


# --- captions by length


def test_a_caption_tells_where_its_first_tokens_end(prepared, monkeypatch):
    limits = (3, 6, 9, 12, 500)
    monkeypatch.setattr(generate, "LIMITS", limits)
    task = next(task for task in prepared.tasks if task.kind == "chair")
    processor = prepared.answerer.processor
    for name in ("greedy", "agla-sample"):
        (said,) = prepared.answerer.ask(task, task.items, [(name, 1)])
        shorter = [
            prepared.answerer.ask(replace(task, max_new_tokens=limit), task.items, [(name, 1)])[0]
            for limit in limits[:4]
        ]
        for i, one in enumerate(said):
            starts = [one.text[:cut] for cut in one.cut_at]
            assert starts[:4] == [short[i].text for short in shorter]
            assert starts[4] == one.text
    (stopped,) = prepared.answerer.ask(replace(task, until=(said[0].text.split()[2],)), task.items, [(name, 1)])
    assert stopped[0].cut_at[-1] == len(stopped[0].text) < len(said[0].text)
    assert processor.tokenizer.decode([], skip_special_tokens=True) == ""


def test_half_a_character_at_a_cut_is_none_of_the_text():
    text = "a café, 2€"
    tokens = torch.tensor([list(text.encode()) + [0] * 520])

    class Bytes:
        def batch_decode(self, rows, skip_special_tokens):
            return [bytes(row[row > 0].tolist()).decode(errors="replace") for row in rows]

    cuts = Asker(None, Bytes(), None, {})._cut_at
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "LIMITS", (5, 6, 7, 10, 11, 12, 13))
        assert cuts(tokens, [text]) == [(5, 5, 6, 9, 9, 9, 10)]
