"""Ways to adapt a CLIP without gradients: other sentences for a claim, or remembered pictures and negatives beside it.

What is found lies in the retriever's card and, where it is tensors, beside it; matchers and tables read it from there.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn
from torch.nn.functional import normalize

from lvlm_guard.adapters import search as searching
from lvlm_guard.adapters.errors import TrainingError
from lvlm_guard.adapters.evaluation.metrics import auroc
from lvlm_guard.adapters.losses import LossInputs, LossStack
from lvlm_guard.adapters.prompts.heads import parted
from lvlm_guard.adapters.retrieval.bank import Sentences
from lvlm_guard.adapters.retrieval.claims import TEMPLATE, Claims, claim, known_of
from lvlm_guard.adapters.retrieval.folder import Memory
from lvlm_guard.adapters.retrieval.retriever import DualPromptRetriever
from lvlm_guard.adapters.terms import claims
from lvlm_guard.adapters.testtime import cache, mine
from lvlm_guard.adapters.training.beside import NULL, null_image
from lvlm_guard.adapters.training.recipe import learning
from lvlm_guard.errors import KnobError, WeightsError
from lvlm_guard.matching.platt import platt
from lvlm_guard.matching.vocabulary import article

if TYPE_CHECKING:
    from lvlm_guard.adapters.training.dual_prompt import Pictures, Plan

WORDS = (
    "photo",
    "picture",
    "image",
    "of",
    "the",
    "in",
    "with",
    "this",
    "is",
    "there",
    "scene",
    "small",
    "large",
    "only",
)
"""Words that edits draw from, as far as the tokenizer knows them."""

SEEDS = (TEMPLATE, "{article} {object}", "there is {article} {object} in the picture", "the {object}")
MINUTES = 10
"""That a proposer may think."""

GATED, SHADED = 256, 200
"""Pictures by which a gate is learnt, and steps."""

SHADES = (1.0, 0.5, 0.25, 0.1)
"""Of the light that there is, from well-lit to dark."""

CONCEPT_STEPS, CONCEPT_RATE = 200, 3e-4
"""Of learning features of objects, by Adam; ours, chosen on validation scenes."""

Found = dict[str, Any]


def adapted(plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, seed: int) -> Found:
    """Adapt an untuned retriever in place by what the plan says; return what is to be told of it.

    Raises:
        TrainingError: facts tell of no objects.
        KnobError: the plan names an unknown way, or lacks what `ready` asks for.
    """
    ready(plan)
    if plan.free not in WAYS:
        raise KnobError(f"There is no training-free way {plan.free!r}: give one of {', '.join(WAYS)}.")
    return WAYS[plan.free](plan, pictures, retriever, objects(plan, pictures), np.random.default_rng(seed))


def objects(plan: Plan, pictures: Pictures) -> Claims:
    """Return the claims about what training pictures show; raises `TrainingError` where they tell of no object."""
    find = known_of(pictures.train, pictures.bank)
    made = Claims.of([find(image) for image in pictures.train.images], without=plan.withheld)
    if not made.telling:
        raise TrainingError("Facts tell of no object that is in some pictures and absent in others; see --data.")
    return made


def _described(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    sentences = sentences_of(plan, pictures)
    retriever.card = replace(retriever.card, sentences={name: tuple(said) for name, said in sentences.classes.items()})
    return {"sentences": sum(map(len, sentences.classes.values()))}


def _told_apart(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    sentences = Sentences.from_file(plan.bank)
    sides = sentences.sides(made.names, retriever.text_features)
    retriever.remember(Memory("pairs", made.names, {"sides": sides}))
    return {"pairs": int((sides.square().sum(-1) > 0).sum())}


def _searched(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    image = pictures.frozen(pictures.train.images)

    def scored(prompt: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        texts = [prompt.format(article=article(name), object=name) for name in made.names]
        return made.judged((image @ retriever.text_features(texts).T).numpy())

    def logits(prompt: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        scores, true = scored(prompt)
        slope, offset = platt(scores, true, balanced=True)
        return slope * scores + offset, true

    def ranked(prompts: Sequence[str]) -> list[float]:
        return [float(auroc(s[t], s[~t])) for s, t in map(scored, prompts)]

    def calibrated(prompts: Sequence[str]) -> list[float]:
        return [searching.mixed(s, t) for s, t in map(logits, prompts)]

    words = [word for word in WORDS if known(retriever, word)]
    seeds = [seed for seed in SEEDS if known(retriever, seed.format(article="a", object=made.names[0]))]
    how = dict(plan.search)
    budget, proposer = int(how.get("budget", 64)), how.get("proposer", "edits")
    history = searching.search(
        seeds, _proposer(plan, proposer, words, pictures), calibrated if how.get("fitness") == "mixed" else ranked,
        budget, rng,
    )  # fmt: skip
    best = history.best
    retriever.card = replace(retriever.card, templates=(best,))
    scores, true = logits(best)
    err = float(np.mean([(scores[true] <= 0).mean(), (scores[~true] > 0).mean()]))
    # a uniform prior over words of the vocabulary, which every prompt of the search is of
    nats = len(best.split()) * float(np.log(len(retriever.inputs.tokenizer)))
    told: Found = {"prompt": best, "fitness": history.fitness[best], "tried": len(history.fitness)}
    return told | {"error": err, "bound": searching.bound(err, len(pictures.train.images), nats), "nats": nats}


LLM = ("history", "feedback")
"""Proposers that ask a command of the user's."""


def ready(plan: Plan) -> None:
    """Raise what is lacking before anything is read, not hours later when this plan's turn comes.

    Raises:
        KnobError: an LLM writes the prompts, and none is given; the file of sentences can't be read, or lacks pairs.
        WeightsError: a folder to start from holds no adapter.
    """
    sentences = Sentences.from_file(plan.bank) if plan.bank else Sentences({})
    name = plan.work or "this work"
    if plan.free == "pairs" and not sentences.pairs:
        raise KnobError(
            f'Of {name} there must be sentences that tell two objects apart: give --bank FILE with "pairs".'
        )
    if plan.search.get("proposer") in LLM and not plan.proposer:
        raise KnobError(
            f"The prompts of {name} are written by an LLM: give one, --proposer 'COMMAND' (message in, lines out)."
        )
    for folder in plan.init:
        if not (Path(folder) / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise WeightsError(f"{folder} holds no adapter to start from: give a folder that `lvlm-guard train` wrote.")


def _proposer(plan: Plan, name: str, words: Sequence[str], pictures: Pictures) -> searching.Propose:
    if name in ("edits", "climbing"):
        return searching.edits(words) if name == "edits" else searching.climbing(words)
    captions = [row.caption for row in pictures.train.rows[:5]] if name == "history" else []
    return searching.chatting(asking(plan.proposer), k=10 if captions else 5, worst=not captions, captions=captions)


def asking(command: str) -> Callable[[str], str]:
    """Return a chat that runs a command of the user's: the message on its input, the reply on its output.

    Raises (when asked):
        TrainingError: it fails, or thinks longer than ten minutes.
    """

    def chat(message: str) -> str:
        try:
            call = {"input": message, "text": True, "capture_output": True, "check": True, "timeout": 60 * MINUTES}
            return str(subprocess.run(command, shell=True, **call).stdout)  # type: ignore[call-overload]
        except (OSError, subprocess.SubprocessError) as error:
            raise TrainingError(f"The proposer {command!r} failed: {error}.") from error

    return chat


def _remembered(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    image, text = pictures.frozen(pictures.train.images), retriever.text_features(made.texts)
    held = cache(image, (image @ text.T / retriever.model.tau).softmax(-1))
    tensors = {"keys": held.keys, "values": held.values, "shares": held.shares, "text": text}
    retriever.remember(Memory("cache", made.names, tensors))
    return {"remembered": len(held.keys)}


def _negated(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    words = [name for name in pictures.bank.meta_of if known(retriever, name)]
    said = retriever.text_features([TEMPLATE.format(article=article(word), object=word) for word in words])
    # of each claim what is far from it and of its own: the rest of the list, however true of the picture
    own = retriever.text_features(made.texts)
    names = {name: mine(own[k : k + 1], words, said, len(words) // 2) for k, name in enumerate(made.names)}
    most = min(map(len, names.values()))
    tensors = {"negatives": torch.stack([_rows(said, words, names[name][:most]) for name in made.names])}
    retriever.remember(Memory("negatives", made.names, tensors))
    return {"negatives": most}


def _gated(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    """Learn two prompts, of well-lit and of dark pictures: CLIP-LIT (arXiv:2303.17569), margins between shades."""
    from lvlm_guard.adapters.training.dual_prompt import build

    keys = [pictures.train.images[int(k)] for k in rng.permutation(len(pictures.train.images))[:GATED]]
    mean, std = (torch.tensor(of)[:, None, None] for of in (retriever.inputs.mean, retriever.inputs.std))
    lit = pictures.pixels(keys) * std + mean
    seen = [retriever.frozen_features((lit * shade - mean) / std)[0] for shade in SHADES]
    chain = torch.stack(seen, 1)
    pair = build(replace(plan, free="", prompts="coop", options={"producer": "experts", "experts": 2}), pictures)
    said, d = pair.text_inputs(["photo"]), chain.shape[-1]
    optimizer = torch.optim.AdamW(learning(pair.model).values(), lr=1e-2)
    stack = LossStack(contrastive=0, hard_negative=0, more={"ordered": 1.0})
    for _ in range(SHADED):
        prompts = parted(pair.model.encode_text(said.input_ids, said.attention_mask), 2, d)[0].cpu()
        logits = chain @ prompts.T / retriever.model.tau
        ends = -logits[:, 0].log_softmax(-1)[:, 0] - logits[:, -1].log_softmax(-1)[:, 1]
        value = stack(LossInputs(chain=logits.softmax(-1)[..., 0])).total + ends.mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    undecided = (chain[:, 0] @ retriever.text_features(made.texts).T).mean()[None]
    retriever.remember(Memory("gate", (), {"pair": prompts.detach(), "undecided": undecided}))
    share = logits.detach().softmax(-1)[..., 0].mean(0)
    return {"lit": round(float(share[0]), 4), "dark": round(float(share[-1]), 4)}


def _visual(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    """Fit by which cosine with the NULL image a text is not visual (arXiv:2305.10434), on texts of training."""
    null = retriever.model.images(null_image(retriever.inputs.side))[0]
    texts = [*NULL, *made.texts, *(row.caption for row in pictures.train.rows[:256])]
    cosines = (retriever.text_features(texts) @ null).double().numpy()
    line = platt(cosines, np.arange(len(texts)) < len(NULL), balanced=True)
    retriever.remember(Memory("visualness", (), {"null": null, "line": torch.tensor(line).float()}))
    visual = retriever.visualness(texts) > 0.5
    return {"visual": float(visual[len(NULL) :].float().mean()), "not": float((~visual[: len(NULL)]).float().mean())}


def _rows(features: Tensor, words: Sequence[str], names: Sequence[str]) -> Tensor:
    return features[[words.index(name) for name in names]]


def known(retriever: DualPromptRetriever, text: str) -> bool:
    """Return whether the tokenizer knows all words of a text."""
    tokenizer = retriever.inputs.tokenizer
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(ids) and (tokenizer.unk_token_id == tokenizer.eos_token_id or tokenizer.unk_token_id not in ids)


def _conceived(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    image = pictures.frozen(pictures.train.images)
    text = nn.Parameter(retriever.text_features(made.texts).clone())
    true, false = torch.from_numpy(made.true), torch.from_numpy(made.false)
    slope, offset = platt(*made.judged((image @ text.detach().T).numpy()), balanced=True)
    optimizer = torch.optim.Adam([text], lr=CONCEPT_RATE)
    for _ in range(CONCEPT_STEPS):
        optimizer.zero_grad()
        loss = claims(image @ normalize(text, dim=-1).T + offset / slope, true, false, tau=retriever.model.tau)
        loss.backward()
        optimizer.step()
    retriever.remember(Memory("concepts", made.names, {"text": normalize(text.detach(), dim=-1)}))
    return {"concepts": len(text), "loss": float(loss.detach())}


def _viewed(
    plan: Plan, pictures: Pictures, retriever: DualPromptRetriever, made: Claims, rng: np.random.Generator
) -> Found:
    retriever.remember(Memory("views", made.names, {}))
    return {"names": len(made.names)}


def informed(retriever: DualPromptRetriever, sentences: Sentences) -> None:
    """Let claims be read with keywords of what is said of their objects where they fit: KAPT (arXiv:2308.11186), P9."""
    most = retriever.inputs.context - retriever.text_inputs(["a"]).input_ids.shape[1] + 1
    told = {}
    for name in sentences.classes:
        words = sentences.keywords(name, partial(known, retriever))
        said = f"{claim(name)}, {words}"
        if words and len(retriever.inputs.tokenizer(said, add_special_tokens=False)["input_ids"]) <= most:
            told[name] = (said,)
    retriever.card = replace(retriever.card, sentences=told)


def sentences_of(plan: Plan, pictures: Pictures) -> Sentences:
    """Return what the plan's bank says of objects, or else the word bank."""
    return Sentences.from_file(plan.bank) if plan.bank else Sentences.of(pictures.bank)


Way = Callable[["Plan", "Pictures", DualPromptRetriever, Claims, np.random.Generator], Found]
WAYS: Mapping[str, Way] = {
    "sentences": _described,
    "pairs": _told_apart,
    "search": _searched,
    "cache": _remembered,
    "negatives": _negated,
    "gate": _gated,
    "visualness": _visual,
    "concepts": _conceived,
    "views": _viewed,
}
"""What `Plan.free` may be."""
