"""What a guard costs at a running server: `vllm bench serve` for each of its names, and a proof of every answer.

The requests are vLLM's own: random pictures and words, new ones in each block, the same for every name within it. Names
take turns, so that what else the machine does meets all alike; ratios are of blocks, with 95 % intervals. The front
counts answers by the guard that ran: a run whose count is less than its answers is no measurement, but an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from lvlm_guard.bench.intervals import figure, median_interval, median_ratio
from lvlm_guard.bench.measure import turning
from lvlm_guard.errors import GuardError, MissingExtraError, UnprovedError
from lvlm_guard.proof import FIELD

KEY = "OPENAI_API_KEY"
"""Environment variable of the server's key, where it wants one."""

Record = dict[str, Any]
_SHOWN = {
    "tokens_per_s": "output_throughput",
    "first_token_median_s": "median_ttft_ms",
    "first_token_p95_s": "p95_ttft_ms",
}


@dataclass(frozen=True)
class Arm:
    """One way to be answered.

    Args:
        name: of the model.
        guard: None: plain.
        url: of its server.
        server: "guarded", or "plain" for an ordinary vLLM beside it.
    """

    name: str
    guard: str | None
    url: str
    server: str = "guarded"


@dataclass(frozen=True)
class Load:
    """What is asked.

    Args:
        tokenizer: folder or hub id, by which random words are made.
        side: pixels of a picture.
        words: tokens of a question.
        tokens: of an answer; it goes on to them whatever the model says.
        requests: of each run, two rounds of those at once or more.
    """

    tokenizer: str
    side: int = 336
    words: int = 16
    tokens: int = 64
    requests: int = 8

    def asked(self, at_once: int) -> int:
        """Return how many requests one run sends."""
        return max(self.requests, 2 * at_once)

    def options(self, arm: Arm, at_once: int, seed: int) -> list[str]:
        """Return the options of `vllm bench serve` for one run."""
        said = {
            "backend": "openai-chat", "base-url": arm.url, "endpoint": "/v1/chat/completions",
            "model": self.tokenizer, "served-model-name": arm.name, "seed": seed, "temperature": 0,
            "dataset-name": "random-mm", "random-mm-base-items-per-request": 1,
            "random-mm-limit-mm-per-prompt": '{"image": 1}', "random-mm-num-mm-items-range-ratio": 0,
            "random-mm-bucket-config": f"{{({self.side}, {self.side}, 1): 1.0}}",
            "random-input-len": self.words, "random-output-len": self.tokens,
            "num-prompts": self.asked(at_once), "max-concurrency": at_once,
            "percentile-metrics": "ttft", "metric-percentiles": "95",
        }  # fmt: skip
        return ["--disable-tqdm", *(word for name, value in said.items() for word in (f"--{name}", str(value)))]


def arms_of(url: str, plain_url: str = "", name: str = "", guards: Sequence[str] = ()) -> list[Arm]:
    """Return the plain name of a server, those of its guards, and an ordinary vLLM's.

    Args:
        url: of the server.
        plain_url: of an ordinary vLLM with the same model; "": none.
        name: plain one; "": the first.
        guards: wanted; none: all.

    Raises:
        GuardError: there is no such name, or no server.
    """
    url, plain_url = (one.rstrip("/").removesuffix("/v1") for one in (url, plain_url))
    names = {card["id"]: (card.get(FIELD) or {}).get("method") for card in _get(url, "/v1/models").json()["data"]}
    plains = [one for one, guard in names.items() if guard is None]
    if not plains or (name and name not in plains):
        raise GuardError(f"The server has no plain model {name!r}; it has {', '.join(plains) or 'none'}: --model.")
    plain = name or plains[0]
    served = {guard: f"{plain}-{guard}" for guard in names.values() if guard and f"{plain}-{guard}" in names}
    if missing := [guard for guard in guards if guard not in served]:
        raise GuardError(f"{plain!r} is not guarded by {missing[0]} there; it is by {', '.join(served) or 'nothing'}.")
    arms = [Arm(plain, None, url), *(Arm(served[guard], guard, url) for guard in guards or served)]
    if plain_url:
        listed = [card["id"] for card in _get(plain_url, "/v1/models").json()["data"]]
        arms.append(Arm(plain if plain in listed else listed[0], None, plain_url, "plain"))
    return arms


def measure(
    arms: Sequence[Arm],
    load: Load,
    loads: Sequence[int],
    blocks: int,
    kept: Path | None = None,
    tick: Callable[[int], object] = lambda count: None,
) -> Iterator[Record]:
    """Yield the record of each run; one more block goes before those that count.

    Args:
        arms: of `arms_of`.
        load: what is asked.
        loads: requests in flight.
        blocks: that count.
        kept: file that records are added to, and that an earlier run's are taken from; None: none.
        tick: told of each run.

    Raises:
        UnprovedError: answers did not have their guard.
        GuardError: requests failed, or the file is of another run.
        MissingExtraError: vLLM, whose benchmark this is, is not installed.
    """
    known = _known(kept, {"arms": [f"{arm.name} ({arm.server})" for arm in arms], "load": asdict(load)})
    for block, order in enumerate(turning(arms, blocks + 1), -1):
        for at_once, arm in product(loads, order):
            record = known.get((block, at_once, arm.server, arm.guard))
            if record is None:
                record = _run(arm, load, at_once, block)
                if kept is not None and block >= 0:
                    with kept.open("a") as file:
                        file.write(json.dumps(record) + "\n")
            tick(1)
            if block >= 0:
                yield record


def rows(records: Sequence[Record]) -> list[Record]:
    """Return the figures in long form: medians over blocks, and ratios to the plain name and to the ordinary vLLM."""
    runs: dict[tuple[int, str, str | None], list[Record]] = {}
    for one in records:
        runs.setdefault((one["at_once"], one["server"], one["guard"]), []).append(one)
    found: list[Record] = []
    for (at_once, server, guard), mine in runs.items():
        base = {"method": guard or "greedy", "server": server, "task": "caption", "concurrency": at_once}
        base |= {"n": sum(one["completed"] for one in mine), "blocks": len(mine)}

        found += [base | figure(metric, median_interval([one[metric] for one in mine])) for metric in _SHOWN]
        for against in ("guarded", "plain"):
            other = runs.get((at_once, against, None), [])
            if server == "guarded" and (server, guard) != (against, None) and len(other) == len(mine):
                for ratio, of in (("time_ratio", "seconds"), ("first_token_ratio", "first_token_median_s")):
                    pairs = [one[of] for one in mine], [one[of] for one in other]
                    found.append(base | {"against": against} | figure(ratio, median_ratio(*pairs)))
    return found


def _run(arm: Arm, load: Load, at_once: int, block: int) -> Record:
    before = answered(arm) if arm.server == "guarded" else 0.0
    said = _benchmark(load.options(arm, at_once, seed=block + 1))
    wanted = load.asked(at_once)
    if said["completed"] != wanted:
        raise GuardError(f"{wanted - said['completed']} of {wanted} requests to {arm.name!r} at {arm.url} failed.")
    if arm.server == "guarded" and answered(arm) - before < wanted:
        raise UnprovedError(
            f"{arm.name!r} gave {wanted} answers, of which the server counts fewer as {arm.guard or 'plain'}."
        )
    shown = {name: said[key] / (1000 if key.endswith("_ms") else 1) for name, key in _SHOWN.items()}
    place = {"block": block, "at_once": at_once, "server": arm.server, "guard": arm.guard}
    return place | {"completed": wanted, "seconds": said["duration"]} | shown


def answered(arm: Arm) -> float:
    """Return how many answers a server counts for an arm's guard."""
    wanted = {"guard": arm.guard or "none"}
    families = text_string_to_metric_families(_get(arm.url, "/metrics").text)
    samples = [sample for family in families if family.name == "lvlm_guard_requests" for sample in family.samples]
    return sum(one.value for one in samples if one.name == "lvlm_guard_requests_total" and one.labels == wanted)


def _benchmark(options: Sequence[str]) -> dict[str, Any]:
    try:
        from vllm.benchmarks.serve import add_cli_args, main_async
        from vllm.utils.argparse_utils import FlexibleArgumentParser
    except ImportError as error:
        raise MissingExtraError(
            f"Measuring a server needs vLLM's benchmark ({error.name} is missing): pip install 'lvlm-guard[serve]'."
        ) from error
    parser = FlexibleArgumentParser(prog="vllm bench serve")
    add_cli_args(parser)
    with contextlib.redirect_stdout(sys.stderr):
        found: dict[str, Any] = asyncio.run(main_async(parser.parse_args(list(options))))
    return found


def _known(file: Path | None, settings: Mapping[str, Any]) -> dict[Any, Record]:
    if file is None:
        return {}
    head, *lines = file.read_text().splitlines() if file.exists() else [""]
    if not head:
        file.write_text(json.dumps(settings) + "\n")
    elif head != json.dumps(settings):
        raise GuardError(f"{file} holds a run with other settings: {head:.300}. Give another --out.")
    records = [json.loads(line) for line in lines if line.endswith("}")]  # a line that was torn off is measured again
    return {(one["block"], one["at_once"], one["server"], one["guard"]): one for one in records}


def _get(url: str, path: str) -> httpx.Response:
    key = os.environ.get(KEY, "")
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.get(url + path, headers=headers, timeout=30, trust_env=False).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise GuardError(f"Nothing that serves models answers at {url or 'an empty address'} ({error}).") from error
