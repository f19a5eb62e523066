"""`vote` on tiny random models whose "words" are single bytes, against its formula written out."""

import math
import re
import threading
from dataclasses import replace

import pytest
import recompute
import tiny
import torch
from matchers import Brightness
from transformers import TextStreamer

from lvlm_guard import guard, methods, unguard
from lvlm_guard.errors import KnobError, MissingViewError, TextError, UnsupportedCallError
from lvlm_guard.matching import Matcher
from lvlm_guard.matching.claims import Choice
from lvlm_guard.matching.vocabulary import plural
from lvlm_guard.matching.voting import odds_of

STEPS = 10
LETTERS = "abcdefghijklmnopqrstuvwxyz"
NAMES = tuple(sorted({a + b for a in LETTERS for b in LETTERS[::3]}))  # random answers start many of these
QUESTIONS = ["What is there?", "Describe the picture at length, please."]


class Counting(Brightness):
    """Keeps what it was asked; its answers depend on picture and claim."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def support(self, image, claims):
        self.asked += [(image.tobytes(), claim) for claim in claims]
        bright = sum(image.convert("L").resize((4, 4)).tobytes()) / 4080
        return torch.tensor([(bright * sum(map(ord, claim)) / 7) % 1 for claim in claims])


def vote(**knobs):
    return methods.Vote(**{"matcher": Counting(), "objects": NAMES, "template": "a {object}", "beta": 0.02} | knobs)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def pair(request):
    model, processor = tiny.make(request.param, scale=3.0)
    yield guard(model, processor, vote())
    unguard(model)
    unguard(processor)


@pytest.fixture(scope="module")
def llava():
    model, processor = tiny.make("llava")
    yield guard(model, processor, vote())
    unguard(model)
    unguard(processor)


def inputs_of(pair, questions=QUESTIONS, seeds=(11, 12)):
    _, processor = pair
    pictures = [tiny.picture(seed, 60, 40) for seed in seeds][: len(questions)]
    prompts = [tiny.prompt(processor, question) for question in questions]
    return processor(images=pictures, text=prompts, padding=True, return_tensors="pt").to(torch.float64)


def reachable(text, token_text):
    """Names that a byte starts or goes on after a text, letter by letter; every name is one word."""
    word = ""
    for character in (text + token_text).lower():
        word = word + character if character.isalnum() or (word and character in "'’") else ""
    if not word or not token_text.isalnum():
        return []
    return [name for name in NAMES if name.startswith(word) or plural(name).startswith(word)]


def named_in(tokenizer, tokens):
    """Names that an answer has written and left, the word at its end left out."""
    special = set(tokenizer.all_special_ids)
    runs = [[]]
    for token in tokens:
        runs += [[]] if token in special else []
        runs[-1] += [] if token in special else [token]
    text = "\n".join(tokenizer.decode(run) for run in runs).lower()
    words = re.findall(r"[^\W_]+(?:['’][^\W_]*)*", re.sub(r"[^\W_]+(?:['’][^\W_]*)*$", "", text))
    return {name for name in NAMES if name in words or plural(name) in words}


def ends_with_a_name(text):
    word = re.search(r"[^\W_]+(?:['’][^\W_]*)*(?= *$)", text.lower())
    return bool(word) and any(word.group() in (name, plural(name)) for name in NAMES)


def ends(tokenizer, token):
    return token in tokenizer.all_special_ids or tokenizer.decode([token]).lstrip(" \t")[:1] in (".", "!", "\n")


def by_the_formula(model, processor, inputs, lam, beta, steps, sample=False, again=0.5, ending=1.0):
    """Decode from scratch: plain calls over the whole text, the claims found letter by letter."""
    matcher, views = Counting(), inputs["guard_views"].views()
    state = {key: value for key, value in inputs.items() if key != "guard_views"}
    start = state["input_ids"].shape[1]
    forbidden = model.generation_config.suppress_tokens
    finished = torch.zeros(len(views), dtype=torch.bool)
    for _ in range(steps):
        l = recompute.logits_of(model, state)  # noqa: E741
        z = l.clone()
        for row, view in enumerate(views):
            keep = (l[row] >= l[row].max() + math.log(beta)).nonzero()[:, 0].tolist() if beta else range(l.shape[1])
            text = processor.tokenizer.decode(state["input_ids"][row, start:])
            spoken = named_in(processor.tokenizer, state["input_ids"][row, start:].tolist())
            p = dict(zip(NAMES, matcher.support(view.image, [f"a {name}" for name in NAMES]).tolist(), strict=True))
            behind = ends_with_a_name(text)
            if len(keep) > 1:
                for token in keep:
                    names = reachable(text, processor.tokenizer.decode([token]))
                    if names:
                        most = max(min(p[n], again) if n in spoken else p[n] for n in names)
                        most = min(max(most, 1e-3), 1 - 1e-3)
                        z[row, token] += lam * math.log(most / (1 - most))
                    if behind and ends(processor.tokenizer, token):
                        z[row, token] += lam * ending
            dropped = torch.ones(l.shape[1], dtype=torch.bool)
            dropped[list(keep)] = False
            z[row, dropped] = -math.inf
        z = z.float()
        z[:, forbidden] = -math.inf
        lost = torch.isinf(z).all(-1)
        z[lost] = l.float()[lost].index_fill(1, torch.tensor(forbidden), -math.inf)
        chosen = torch.multinomial(z.softmax(-1), 1)[:, 0] if sample else z.argmax(-1)
        chosen = torch.where(finished, 3, chosen)
        finished |= chosen == 2
        state = dict(state, input_ids=torch.cat([state["input_ids"], chosen[:, None]], 1))
        for key in ("attention_mask", "mm_token_type_ids"):
            if key in state:
                state[key] = torch.cat(
                    [state[key], torch.full_like(state[key][:, :1], int(key == "attention_mask"))], 1
                )
        if finished.all():
            break
    return state["input_ids"]


def follows_the_formula(pair, sample, lam, beta, steps=STEPS, **knobs):
    model, processor = pair
    inputs = inputs_of(pair)
    torch.manual_seed(4)
    expected = by_the_formula(
        model, processor, inputs, lam, beta, steps, sample, knobs.get("again", 0.5), knobs.get("ends", 1.0)
    )
    torch.manual_seed(4)
    out = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=sample,
        top_k=0,
        guard=vote(lam=lam, beta=beta, **knobs),
        return_dict_in_generate=True,
    )
    assert torch.equal(out.sequences, expected)
    assert out.guard.claims > 0
    if beta < 0.1:
        assert not torch.equal(
            out.sequences, model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, guard=False)
        )


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_tokens_equal_the_formula_recomputed_from_scratch(pair, sample):
    follows_the_formula(pair, sample, lam=1.0, beta=0.02)


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize(("lam", "beta"), [(3.0, 0.1), (0.5, 0.0)])
def test_other_weights_and_cuts_follow_the_formula_too(llava, sample, lam, beta):
    follows_the_formula(llava, sample, lam, beta)


def test_lambda_zero_is_plain_when_greedy_and_the_constraint_alone_when_sampled(pair):
    model, _ = pair
    inputs = inputs_of(pair)
    greedy = {"max_new_tokens": STEPS, "do_sample": False}
    assert torch.equal(
        model.generate(**inputs, **greedy, guard=vote(lam=0.0)), model.generate(**inputs, **greedy, guard=False)
    )
    sampled = []
    for chosen in (vote(lam=0.0), methods.APC(beta=0.02)):
        torch.manual_seed(9)
        sampled.append(model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, guard=chosen))
    assert torch.equal(*sampled)


def test_a_row_of_a_batch_equals_the_same_request_alone(pair):
    model, processor = pair
    together = model.generate(**inputs_of(pair), max_new_tokens=STEPS, do_sample=False)
    for row, (question, seed) in enumerate(zip(QUESTIONS, (11, 12), strict=True)):
        alone = model.generate(**inputs_of(pair, [question], [seed]), max_new_tokens=STEPS, do_sample=False)
        answer = processor.tokenizer.decode(alone[0, -STEPS:], skip_special_tokens=True)
        assert processor.tokenizer.decode(together[row], skip_special_tokens=True).endswith(answer)


@pytest.mark.parametrize(
    "mode",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=["beams", "beams returning two", "two samples"],
)
def test_votes_do_not_depend_on_the_cache_under_beams_and_sampling(llava, mode):
    model, _ = llava
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        runs.append(model.generate(**inputs_of(llava), max_new_tokens=STEPS, use_cache=use_cache, **mode))
    assert torch.equal(*runs)


def test_prompt_lookup_and_streaming_give_the_greedy_tokens(llava, capsys):
    model, processor = llava
    inputs = inputs_of(llava, QUESTIONS[:1])
    expected = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    looked_up = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(looked_up, expected)
    streamed = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, streamer=TextStreamer(processor.tokenizer, skip_prompt=True)
    )
    assert torch.equal(streamed, expected)
    assert processor.tokenizer.decode(expected[0, -STEPS:]).strip() in capsys.readouterr().out


@pytest.mark.parametrize("execution", ["auto", "lazy", "batched"])
def test_there_is_no_second_branch_however_it_is_run(llava, execution):
    model, _ = llava
    out = model.generate(
        **inputs_of(llava),
        max_new_tokens=STEPS,
        do_sample=False,
        guard_execution=execution,
        return_dict_in_generate=True,
    )
    assert out.guard.execution == "single"
    assert (out.guard.local_forwards, out.guard.local_tokens, out.guard.masks) == (0, 0, 0)


@pytest.mark.parametrize("prefetch", [False, True])
def test_each_claim_about_a_picture_is_scored_once(llava, prefetch):
    model, _ = llava
    chosen = vote(prefetch=prefetch)
    out = model.generate(
        **inputs_of(llava), max_new_tokens=30, do_sample=False, guard=chosen, return_dict_in_generate=True
    )
    asked = chosen.matcher.asked
    assert out.guard.claims > 0
    assert len(asked) == len(set(asked))
    if prefetch:
        assert len(asked) % len(NAMES) == 0
    plain = model.generate(**inputs_of(llava), max_new_tokens=30, do_sample=False, guard=vote())
    assert torch.equal(out.sequences, plain)


def test_the_trace_names_the_claim_of_each_token_that_had_one(llava):
    model, processor = llava
    out = model.generate(
        **inputs_of(llava, QUESTIONS[:1]), max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True
    )
    steps = out.guard.steps[0]
    told = [step for step in steps if step.claims]
    assert told
    for step in told:
        assert not step.decided
        for token, claim in step.claims.items():
            assert claim.startswith("a ")
            assert processor.tokenizer.decode([token]).lower() in claim[2:] + plural(claim[2:])
    assert out.guard.claims == sum(len(step.claims) for step in told)


def test_a_yes_no_question_is_the_claim_of_the_tokens_that_start_yes(llava):
    model, processor = llava
    chosen = vote(beta=0.0)
    out = model.generate(
        **inputs_of(llava, ["Is there a dog?"]),
        max_new_tokens=1,
        do_sample=False,
        guard=chosen,
        return_dict_in_generate=True,
    )
    claims = out.guard.steps[0][0].claims
    assert sorted(processor.tokenizer.decode([token]) for token in claims) == ["Y", "y"]
    assert set(claims.values()) == {"Is there a dog?"}
    assert len(chosen.matcher.asked) == 1


def test_a_given_claim_stands_for_yes_whatever_the_question(llava):
    model, _ = llava
    chosen = vote(beta=0.0, claim="a cow is in view")
    model.generate(**inputs_of(llava, ["Hmm, well."]), max_new_tokens=1, do_sample=False, guard=chosen)
    assert {claim for _, claim in chosen.matcher.asked} == {"a cow is in view"}


def test_threads_with_different_knobs_do_not_mix(llava):
    model, _ = llava
    lambdas = [0.0, 1.0, 4.0]

    def run(lam):
        return model.generate(**inputs_of(llava), max_new_tokens=STEPS, do_sample=False, guard=vote(lam=lam))

    expected, got = [run(lam) for lam in lambdas], {}
    threads = [threading.Thread(target=lambda lam=lam: got.update({lam: run(lam)})) for lam in lambdas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[lam], tokens) for lam, tokens in zip(lambdas, expected, strict=True))


def test_with_several_pictures_the_best_supported_one_counts(llava):
    model, processor = llava
    chosen = vote(beta=0.0)
    pictures = [tiny.picture(11, 60, 40), tiny.picture(12, 60, 40)]
    inputs = processor(images=[pictures], text=[tiny.prompt(processor, "Is it?", 2)], return_tensors="pt")
    inputs = inputs.to(torch.float64)
    out = model.generate(**inputs, max_new_tokens=1, do_sample=False, guard=chosen, return_dict_in_generate=True)
    p = max(float(Counting().support(picture, ["Is it?"])) for picture in pictures)
    l = recompute.logits_of(model, {k: v for k, v in inputs.items() if k != "guard_views"})[0]  # noqa: E741
    (yes,) = [token for token in out.guard.steps[0][0].claims if processor.tokenizer.decode([token]) == "y"]
    assembled = l.clone()
    for token in out.guard.steps[0][0].claims:
        assembled[token] += math.log(p / (1 - p))
    told = out.guard.steps[0][0].log_prob["assembled"]
    chosen_token = out.guard.steps[0][0].token
    assert told == pytest.approx(float(assembled.log_softmax(-1)[chosen_token]), abs=1e-6)
    assert yes in out.guard.steps[0][0].claims


def test_requests_without_a_picture_stay_plain(llava):
    model, processor = llava
    text = ["USER: What is there? ASSISTANT:", tiny.prompt(processor, QUESTIONS[0])]
    inputs = processor(images=[tiny.picture(11)], text=text, padding=True, return_tensors="pt").to(torch.float64)
    guarded = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    plain = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, guard=False)
    assert torch.equal(guarded[0], plain[0])


def test_a_picture_without_a_question_or_from_a_plain_processor_is_an_error(llava):
    model, _ = llava
    with pytest.raises(TextError):
        model.generate(**inputs_of(llava, [""]), max_new_tokens=1)
    inputs = inputs_of(llava, QUESTIONS[:1])
    inputs.pop("guard_views")
    with pytest.raises(MissingViewError):
        model.generate(**inputs, max_new_tokens=1)


def test_a_matcher_that_gives_maps_only_is_refused_before_the_first_token(llava):
    class MapsOnly(Brightness):
        support = Matcher.support

    model, _ = llava
    with pytest.raises(UnsupportedCallError, match="support"):
        model.generate(**inputs_of(llava), max_new_tokens=1, guard=vote(matcher=MapsOnly()))


@pytest.mark.parametrize(
    "knobs",
    [
        {"lam": -1.0},
        {"lam": math.nan},
        {"beta": 1.5},
        {"ends": -1.0},
        {"again": 1.5},
        {"again": -0.1},
        {"again": math.nan},
        {"objects": ()},
        {"objects": "no-such-file.txt"},
        {"template": "is it there?"},
        {"template": "{name}"},
        {"template": "{object"},
    ],
    ids=str,
)
def test_a_knob_out_of_range_is_an_error(knobs):
    with pytest.raises(KnobError):
        methods.Vote(**knobs)


def test_knobs_may_be_a_list_of_objects_and_are_hashable_plain_data():
    chosen = methods.Vote(objects=["dog", "couch, sofa"])
    assert chosen.objects == ("dog", "couch, sofa")
    assert hash(chosen) == hash(methods.Vote(objects=("dog", "couch, sofa")))
    assert chosen.knobs()["objects"] == ["dog", "couch, sofa"]


@pytest.mark.parametrize("knobs", [{}, {"again": 0.02, "ends": 4.0}], ids=str)
def test_what_is_named_already_and_the_end_of_a_sentence_follow_the_formula(llava, knobs):
    follows_the_formula(llava, True, lam=1.0, beta=0.001, steps=16, **knobs)


DOG, CAT = Choice({5: frozenset({"dog"})}), Choice({5: frozenset({"dog", "cat"})})


@pytest.mark.parametrize(
    ("choice", "again", "expected"),
    [
        (DOG, 0.5, {5: ("dog", math.log(9))}),
        (replace(DOG, named=frozenset({"dog"})), 0.5, {5: ("dog", 0.0)}),
        (replace(DOG, named=frozenset({"dog"})), 0.02, {5: ("dog", -math.log(49))}),
        (replace(DOG, named=frozenset({"dog"})), 1.0, {5: ("dog", math.log(9))}),
        (replace(CAT, named=frozenset({"dog"})), 0.5, {5: ("dog", 0.0)}),  # the cat is refuted: .2
        (replace(CAT, named=frozenset({"dog"})), 0.1, {5: ("cat", -math.log(4))}),
    ],
)
def test_golden_votes(choice, again, expected):
    votes = odds_of(choice, {"dog": 0.9, "cat": 0.2}, again)
    assert {token: name for token, (name, _) in votes.items()} == {token: name for token, (name, _) in expected.items()}
    assert [odds for _, odds in votes.values()] == pytest.approx([odds for _, odds in expected.values()], abs=1e-9)
