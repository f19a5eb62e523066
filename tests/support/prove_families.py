"""Prove the tiny random models of `any_families.py`, and write the table of what was found.

`python tests/support/prove_families.py [type ...]` writes `lvlm_guard/proving/proven.json`, which `lvlm-guard doctor
--families` prints, and `docs/families.md`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tiny
import torch
import transformers as T
from any_families import NAMES, REFUSED, make
from family_parts import SLIDING

MODES = {
    "beams": {"num_beams": 2}, "a static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 2}, "chunked prefill": {"prefill_chunk_size": 16},
}  # fmt: skip


def said(error: Exception) -> str:
    """The first sentence of what was raised."""
    return re.split(r"(?<=\w)[.:] |\n", f"{error}.")[0].rstrip(".")


def holes(name: str) -> dict[str, str]:
    """Return which ways of decoding a tiny model does not have, plain or guarded, and why."""
    from matchers import Brightness

    from lvlm_guard import guard
    from lvlm_guard.errors import GuardError

    found = {}
    pair = make(name)
    model, processor = guard(*pair, "agla", **_loose("agla", Brightness(), pair[0]))
    text = model._lvlm_guard.family.asked(processor, "Is there a dog? Is there a dog?", 1)
    inputs = processor(images=[tiny.picture(1, 96, 48)], text=[text], return_tensors="pt")
    for mode, how in MODES.items():
        run = how | {"max_new_tokens": 5, "do_sample": False}
        try:
            plain = model.generate(**inputs, **run, guard=False)
        except Exception as error:
            if "do not match" not in str(error):  # a random model drafts a placeholder, for which there is no picture
                found[mode] = f"plain generate() can't: {said(error)}"
            continue
        try:
            out = model.generate(**inputs, **run, return_dict_in_generate=True)
            assert out.guard.local_forwards, "its branch never ran"
            nothing = model.generate(
                **inputs, **run, guard=dataclasses.replace(model._lvlm_guard.method, alpha=0, beta=0)
            )
            if not torch.equal(nothing, plain):
                usual = model.generate(**inputs, max_new_tokens=5, do_sample=False, guard=False)
                assert torch.equal(nothing, usual), "at no strength its tokens are not plain ones"
                found[mode] = "plain generate()'s own tokens are others than without; guarded ones are as without"
        except (GuardError, AssertionError) as error:
            found[mode] = said(error)
    return found


def working(name: str) -> tuple[list[str], dict[str, str]]:
    """Return the methods that guard a tiny model's answers, each request's as it is alone where the plain one's is.

    And why others do not.
    """
    from matchers import Brightness

    from lvlm_guard import guard, methods

    other = (96, 48) if name == "perception_lm" else (56, 56)  # its processor can't batch unequal shapes
    pictures = [[tiny.picture(1, 96, 48)], [tiny.picture(2, *other)]]
    found, without = [], {}
    pair = make(name)
    with wide_windows():
        wide = make(name)
    for method in (name for name in methods.REGISTRY.names() if not methods.REGISTRY.get(name).parity):
        chosen = wide if method == "focus" else pair
        model, processor = guard(*chosen, method, **_loose(method, Brightness(), chosen[0]))
        family = model._lvlm_guard.family
        prompts = [family.asked(processor, f"Is there a {thing}?", 1) for thing in ("dog", "red traffic light")]

        def steady(model: Any = model, processor: Any = processor, prompts: Any = prompts, **how: Any) -> bool:
            answers = []
            for rows in (slice(0, 2), slice(0, 1), slice(1, 2)):
                inputs = processor(images=pictures[rows], text=prompts[rows], padding=True, return_tensors="pt")
                told = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 5}
                out = model.generate(**inputs, **how, **told, do_sample=False)
                logits = torch.stack(out.logits, 1) if how else None  # those of plain generate()
                answers.append((out.sequences[:, inputs["input_ids"].shape[1] :], logits))
            return all(
                torch.equal(answers[0][0][row][: alone.shape[1]], alone[0])
                and (logits is None or torch.allclose(logits[0, 0], answers[0][1][row, 0], atol=1e-4))
                for row, (alone, logits) in enumerate(answers[1:])
            )

        try:
            if steady() or not family.proof.alone or not steady(guard=False):
                found.append(method)
            else:
                without[method] = "an answer depends on its neighbours in the batch"
        except Exception as error:  # that it is no GuardError is a defect of the method's on this family
            without[method] = said(error)
    return found, without


def two_animals(image: Any) -> list[str]:
    """What a detector might find in any picture."""
    return ["dog", "cat"]


def _loose(method: str, matcher: Any, model: Any) -> dict[str, Any]:
    """Knobs under which every branch is wanted."""
    from drawn_statistics import drawn

    from lvlm_guard import methods
    from lvlm_guard.knobs import defaults_of

    own = {"statistics": drawn(method, model)} if methods.REGISTRY.get(method).needs_statistics else {}
    wanted = {"beta": 0.01, "matcher": matcher, "finds": two_animals}
    return own | {key: value for key, value in wanted.items() if key in defaults_of(method)}


PAGE = Path(__file__).parents[2] / "docs" / "families.md"


def page() -> str:
    """Return docs/families.md: the rows of `lvlm-guard doctor --families`."""
    from lvlm_guard.cli.doctor import family_rows

    rows = family_rows()
    count = Counter(row["proven"] for row in rows)
    lines = [
        "# Model families",
        "",
        "For everyone who chooses a model, or has one.",
        "",
        f"Of {len(rows)} model types of transformers {T.__version__} that answer about pictures, {count[True]} are",
        f"proven and {count[False]} refused.",
        "",
        "Any decoder-only model that transformers runs on pictures can be guarded, if a second branch is *proven*",
        "right on it, against plain generate() on the second views. For the families below that was done on tiny",
        "random models of their own classes, for eager and sdpa attention on a CPU; any other is proved, or refused",
        "with what was found, when `guard(model, processor)` first meets it (`check=`), and the proof is kept. Prove",
        "your own weights, kernel and device with `lvlm-guard doctor --model ID`; not tried here: GPUs, flash",
        "attention, quantised weights.",
        "",
        "`focus` hides image tokens in the model's own cache. It is offered where that is proven too: what it reads is",
        "what plain generate() reads under a mask with holes, and each token shows the part of the picture that its",
        "place says. Where a model has sliding windows, prompt and answer must fit into one.",
        "",
        "Models that think first (Qwen3.5, GLM-4V) are guarded from their first token on, thoughts and answer alike:",
        "an object that was thought of is soon in the answer.",
        "",
        "No family has, and each call says so: a guard over videos, `inputs_embeds`, encoded pictures",
        "(`mm_encoder_outputs`), pictures that are scaled already (`do_rescale=False`) or continuous batching. What",
        "else one lacks is in its note, with what was found: ways of decoding (beams, static cache, prompt lookup,",
        "chunked prefill) were each tried, plain and guarded.",
        "",
        "Written by `python tests/support/prove_families.py`; `lvlm-guard doctor --families` prints it.",
        "",
        "| Family | Model type | Methods | Note |",
        "|---|---|---|---|",
    ]
    cells = [
        (row["family"], row["model_types"][0], ", ".join(row["methods"]), row["note"]) for row in rows if row["proven"]
    ]
    lines += [f"| {family} | `{kind}` | {names} | {note} |" for family, kind, names, note in cells]
    lines += ["", "Refused:", ""]
    lines += [f"- `{row['model_types'][0]}`: {row['note']}" for row in rows if row["proven"] is False]
    return "\n".join([*lines, ""])


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what two proofs have in common."""
    both = {key: min(one[key], other[key]) for key in ("stacks", "alone", "crops", "hides")}
    both |= {key: max(one[key], other[key]) for key in ("error", "seen")}
    return {"way": one["way"] if one["way"] == other["way"] else None} | both | {"why": other["why"] | one["why"]}


@contextmanager
def wide_windows() -> Iterator[None]:
    """Make models whose sliding windows hold whole prompts, as those of published ones mostly do."""
    held = SLIDING["sliding_window"]
    SLIDING["sliding_window"] = 512
    try:
        yield
    finally:
        SLIDING["sliding_window"] = held


def proved(name: str) -> tuple[str, dict[str, Any]]:
    """Return a model type and what was proven of it by both kernels, or why it is refused."""
    from lvlm_guard.families.family import Family
    from lvlm_guard.proving import trial

    told = []
    try:
        for attention in ("eager", "sdpa"):
            model, processor = make(name, attention)
            told.append(asdict(trial.self_check(Family.of(model, processor), model, processor)))
            if "window" in told[-1]["why"].get("hides", ""):  # the proof's other answers are of a window that is left
                with wide_windows():
                    model, processor = make(name, attention)
                wide = trial.self_check(Family.of(model, processor), model, processor)
                told[-1] |= {"hides": wide.hides, "why": told[-1]["why"] | wide.why}
                if wide.hides:
                    told[-1]["why"].pop("hides")
    except ValueError as error:
        return model.config.model_type, {"refused": re.sub(r"\s+", " ", str(error))}
    return model.config.model_type, {"proof": _both(*told)}


def main(names: list[str]) -> None:
    """Prove first, since guard() goes by it, and then ask every method; what is known is written as it is found."""
    from lvlm_guard.cli.doctor import thinks_first
    from lvlm_guard.proving import proofs

    place = Path(proofs.__file__).with_name("proven.json")
    found = json.loads(place.read_text())
    kinds = {}
    for name in names or dict.fromkeys([*NAMES, *REFUSED]):
        kinds[name], told = proved(name)
        found[kinds[name]] = {**found.get(kinds[name], {}), **told} if "proof" in told else told
        _write(place, found)
        print(name, told, flush=True)
    for name, kind in kinds.items():
        if "refused" in found[kind]:
            continue
        can, without = working(name)
        if not found[kind]["proof"]["hides"]:
            without["focus"] = found[kind]["proof"]["why"]["hides"]
        more = {"methods": can, "without": without | holes(name), "thinks": thinks_first(make(name)[1])}
        found[kind] = {"proof": found[kind]["proof"], **more}
        _write(place, found)
        print(name, more, flush=True)
    PAGE.write_text(page())


def _write(place: Path, found: dict[str, Any]) -> None:
    place.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1:])
