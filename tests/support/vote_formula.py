"""The formula of `vote` written out: decoded from scratch, its claims found letter by letter."""

import math
import re

import recompute
import tiny
import torch
from matchers import Brightness

from lvlm_guard import methods
from lvlm_guard.matching.vocabulary import plural

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
    """Assert that a guarded model's tokens are those of `by_the_formula`, and others than plain ones."""
    model, processor = pair
    inputs = inputs_of(pair)
    torch.manual_seed(4)
    expected = by_the_formula(
        model, processor, inputs, lam, beta, steps, sample, knobs.get("again", 0.5), knobs.get("ends", 1.0)
    )
    run = {"max_new_tokens": steps, "do_sample": sample, "top_k": 0, "return_dict_in_generate": True}
    torch.manual_seed(4)
    out = model.generate(**inputs, **run, guard=vote(lam=lam, beta=beta, **knobs))
    assert torch.equal(out.sequences, expected)
    assert out.guard.extra["claims"] > 0
    if beta < 0.1:
        torch.manual_seed(4)
        plain = model.generate(**inputs, **run, guard=False).sequences
        assert out.sequences.tolist() != plain.tolist()
