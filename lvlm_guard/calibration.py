"""Gather a method's statistics picture by picture into a folder, so that a run goes on where it stopped."""

from __future__ import annotations

import hashlib
import shutil
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lvlm_guard import __version__
from lvlm_guard.engine.attention import Rows, attending
from lvlm_guard.engine.call import Call, device_of, within
from lvlm_guard.engine.steering import Pass
from lvlm_guard.engine.subclass import plain_class
from lvlm_guard.engine.trace import GuardTrace
from lvlm_guard.errors import GuardError, ImageError, KnobError, UnsupportedModelError
from lvlm_guard.families.family import Family
from lvlm_guard.files import differing, read_json, whole, write_json
from lvlm_guard.images import load_image
from lvlm_guard.matching import Matcher, Vocabulary, load_matcher
from lvlm_guard.matching.claims import pieces_of
from lvlm_guard.matching.vocabulary import claim_about
from lvlm_guard.measured import Measured, Statistics, identity
from lvlm_guard.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "Please describe this image in detail."
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
AGAIN = "Give another --out, or --start-over."


@dataclass
class Subject:
    """The plain model as a calibration questions it: a picture and a prompt at a time.

    Args:
        model, processor: any; answers are plain here, guarded or not.
        prompt, max_new_tokens: that asks for a caption, and how long that may be.
        spec: of the matcher that judges captions, as `load_matcher` takes it.
        vocabulary: the objects that it judges; None for COCO's.
    """

    model: Any
    processor: Any
    prompt: str = PROMPT
    max_new_tokens: int = 128
    spec: Any = None
    vocabulary: Vocabulary | None = None

    @cached_property
    def family(self) -> Family:
        """The model's family; raises `UnsupportedModelError` where it is none that can be guarded."""
        return Family.of(self.model, self.processor)

    @cached_property
    def matcher(self) -> Matcher:
        """The matcher, loaded once it is asked for."""
        found = load_matcher(self.spec, model=self.model)
        found.require_support()
        return found

    @property
    def objects(self) -> Vocabulary:
        """The objects that are judged."""
        return self.vocabulary or Vocabulary.of(None)

    def call(self, picture: Image, answer: Sequence[int] = ()) -> tuple[Call, dict[str, Any]]:
        """Return the prompt with its picture and the tokens of an answer, and what the model reads of it."""
        family, device = self.family, device_of(self.model)
        text = [family.asked(self.processor, self.prompt, 1)]
        bos = self.processor.tokenizer.bos_token
        how = {"return_tensors": "pt", "add_special_tokens": not (bos and text[0].startswith(bos))}
        made = dict(family.process(self.processor, [[picture]], text, (), how))
        said = torch.tensor([list(answer)], dtype=made["input_ids"].dtype)
        ids = torch.cat([made["input_ids"], said], 1)
        mask = torch.cat([made["attention_mask"], torch.ones_like(said)], 1)
        made |= {"input_ids": ids, "attention_mask": mask}
        made.pop("labels", None)  # PaliGemma's
        trace = GuardTrace("", {}, "single", True)
        there = ids.to(device), mask.to(device)
        return Call(self.model, family, self.processor, None, None, [True], trace, there, self.model.dtype), made

    def caption(self, picture: Image, seen: bool = True) -> list[int]:
        """Return the tokens of the model's greedy answer, its end left out; not `seen`, the picture is taken out."""
        call, made = self.call(picture)
        inputs = call.moved(made if seen else call.without_pictures())
        with within(self.model, None):
            plain: Any = plain_class(self.model)
            out = plain.generate(self.model, **inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        special = set(self.processor.tokenizer.all_special_ids)
        return [token for token in out[0, inputs["input_ids"].shape[1] :].tolist() if token not in special]

    def tokens(self, text: str) -> list[int]:
        """Return a text as an answer's tokens."""
        found: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def states(self, picture: Image, answer: Sequence[int], seen: bool = True) -> Tensor:
        """Return every layer's output at the last token of prompt and answer, [L, D] float32; `seen` as `caption`."""
        call, made = self.call(picture, answer)
        layers = range(len(call.decoder))
        given = call.run(made if seen else call.without_pictures(), layers)[1]
        return torch.stack([each[0, -1].float().cpu() for each in given])

    def paid(self, picture: Image, answer: Sequence[int]) -> Tensor:
        """Return the mean attention to the answer so far, where each of its tokens is predicted, [n + 1, L, H] float32.

        The last one is behind the answer; at the first there is nothing to pay attention to, so it is 0.
        """
        call, made = self.call(picture, answer)
        ids, found = made["input_ids"].to(call.device), [torch.empty(0)] * len(call.decoder)
        passed = Pass(call, ids, 0, ids.shape[1] - len(answer), [0])

        def look(rows: Rows) -> None:
            found[rows.index] = rows.paid(rows.since(passed.prompt))[0].T.float().cpu()

        with attending(passed, call.decoder, range(len(call.decoder)), look):
            call.run(made)
        return torch.stack(found, 1)

    def mentions(self, picture: Image, answer: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return at which token above 0 an answer begins to name each object, [m] int64, and how likely that is there,
        [m]; objects that the matcher does not know are left out."""
        pieces = pieces_of(self.processor.tokenizer)
        ends = [len(pieces.joined(answer[: end + 1])) for end in range(len(answer))]
        spellings = self.objects.spellings()
        runs = spellings.named(pieces.joined(answer))
        found = [(bisect(ends, run.start), min(spellings[run.spelling])) for run in runs]
        claims = [claim_about(name) for _, name in found]
        known = self.matcher.knows(claims)
        kept = [i for i, (at, _) in enumerate(found) if at > 0 and known[i]]
        support = self.matcher.support(picture, [claims[i] for i in kept]) if kept else torch.empty(0)
        return torch.tensor([found[i][0] for i in kept], dtype=torch.int64), support.float()


def kind_of(method: str) -> type[Measured]:
    """Return a method's class; raises `UnknownNameError`, or `KnobError` where it needs no statistics."""
    from lvlm_guard.methods import REGISTRY

    kind = REGISTRY.get(method)
    if not (isinstance(kind, type) and issubclass(kind, Measured)):
        those = [name for name in REGISTRY.names() if getattr(REGISTRY.get(name), "needs_statistics", False)]
        raise KnobError(f"{method} needs no statistics: use it as it is. Those that do: {', '.join(those) or 'none'}.")
    return kind


def pictures_in(folder: Path, least: int, most: int) -> list[Path]:
    """Return picture files of a folder and those below it, by name, `most` at most.

    Raises `ImageError` where there are fewer than `least`, or some can't be read, which the message names.
    """
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())[:most]
    if len(found) < least:
        raise ImageError(
            f"{str(folder)!r} holds {len(found)} pictures ({', '.join(sorted(ENDINGS))}), but at least {least} are "
            "needed. Give a folder with more; the more, the steadier the statistics."
        )
    broken = []
    for path in found:
        try:
            load_image(path)
        except (GuardError, OSError) as error:
            broken.append(f"{path}: {error}")
    if broken:
        more = f" (and {len(broken) - 5} more)" if len(broken) > 5 else ""
        raise ImageError(
            f"{len(broken)} of {len(found)} pictures can't be read{more}; take them out of the folder. "
            + " ".join(broken[:5])
        )
    return found


def calibrate(
    subject: Subject,
    method: str,
    pictures: Sequence[Path],
    out: Path,
    *,
    start_over: bool = False,
    echo: Callable[[str], object],
) -> Statistics:
    """Gather a method's statistics, and write them into one file.

    Each picture's part lies in `OUT.parts` until the file is whole, so that the same call goes on after any end.

    Args:
        subject: the model.
        method: registered name of a method that needs statistics.
        pictures: files, see `pictures_in`.
        out: the file; `start_over` drops what an earlier run left.
        echo: where progress goes.

    Raises:
        KnobError: the method needs none, its pictures tell too little, or the parts are of other settings.
        WeightsError: `out` is there, and holds something else.
    """
    kind, parts = kind_of(method), out.with_name(out.name + ".parts")
    asked = {"method": method, **identity(subject.model), "prompt": subject.prompt} | {
        "max_new_tokens": str(subject.max_new_tokens),
        "matcher": str(subject.spec or "usual"),
        "objects": hashlib.sha256(repr(subject.objects).encode()).hexdigest()[:12],
    }
    if start_over:
        shutil.rmtree(parts, ignore_errors=True)
        out.unlink(missing_ok=True)
    if out.exists():
        found = Statistics.read(out)
        if told := differing({key: found.told.get(key) for key in asked}, asked):
            raise KnobError(f"{str(out)!r} is there already, of other settings: {told}. {AGAIN}")
        return found
    begun = parts / "asked.json"
    if told := differing(read_json(begun) or asked, asked):
        raise KnobError(f"{str(parts)!r} was begun with other settings: {told}. {AGAIN}")
    write_json(begun, asked)
    observed = []
    with progress("pictures", len(pictures), echo) as tick:
        for path in pictures:
            kept = parts / f"{hashlib.sha256(path.read_bytes()).hexdigest()[:24]}.safetensors"
            if not kept.exists():
                seen = _observed(kind, subject, path)
                with whole(kept) as part:
                    save_file({key: value.contiguous() for key, value in seen.items()}, part)
            observed.append(load_file(kept))
            tick(1)
    versions = {"lvlm_guard": __version__, "torch": torch.__version__, "transformers": version("transformers")}
    known = asked | versions | {"pictures": str(len(pictures))}
    found = Statistics(kind.conclude(observed), known, out.name)
    found.save(out)
    shutil.rmtree(parts)
    return found


def _observed(kind: type[Measured], subject: Subject, path: Path) -> dict[str, Tensor]:
    try:
        return kind.observe(subject, load_image(path))
    except (GuardError, torch.OutOfMemoryError):
        raise
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # of families that take other inputs
        name = plain_class(subject.model).__name__
        raise UnsupportedModelError(
            f"A {name} can't be questioned as {kind.name} needs it ({type(error).__name__}: {error}; at {path}). Use a "
            "method without statistics."
        ) from error
