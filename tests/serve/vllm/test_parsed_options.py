"""Options that reach vLLM by a file are refused as those of the command line: what vLLM understood is looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from lvlm_guard import embedded
from lvlm_guard.serve.engine.refuse import WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.checkpoint import Checkpoint
from lvlm_guard.serve.launch.command import command
from lvlm_guard.serve.launch.installed import Installed
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.refused import check_parsed


@pytest.fixture(scope="module")
def parser() -> Any:
    return make_arg_parser(FlexibleArgumentParser(prog="lvlm-guard serve", allow_abbrev=False))


def parsed(parser: Any, folder: Path, guards: tuple[str, ...], said: dict[str, Any]) -> Any:
    options = ["--max-num-seqs", "8"]
    if said:
        (folder / "options.yaml").write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in said.items()))
        options += ["--config", str(folder / "options.yaml")]
    of = Checkpoint("m", str(embedded.MODEL), {"architectures": ["LlavaForConditionalGeneration"]}, Passed(options))
    twin = of.twin if set(guards) - {"vote"} else None
    machine = Installed("0", cpu=True)
    fixed: Any = {"names": ("m",), "most_pictures": 1, "uds": "/tmp/x/vllm.sock", "eager": False, "twin": twin}
    return parser.parse_args(command(of, guards, machine, **fixed)[3:])


@pytest.mark.parametrize("guards", [("vote",), ("agla", "vote")])
def test_what_serve_itself_says_and_a_harmless_file_pass(parser: Any, tmp_path: Path, guards: tuple[str, ...]) -> None:
    check_parsed(parsed(parser, tmp_path, guards, {}), parser.get_default)
    check_parsed(parsed(parser, tmp_path, guards, {"max-model-len": 64, "kv-cache-dtype": "auto"}), parser.get_default)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"middleware": ["mine.Front"]}, "--middleware"),
        ({"api-key": ["x"]}, "VLLM_API_KEY"),
        ({"headless": True}, "without a server"),
        ({"speculative-config": {"method": "ngram", "num_speculative_tokens": 2}}, WHY["speculative"]),
        ({"grpc": True}, "front does not stand"),
    ],
)
def test_a_file_can_not_bring_in_what_goes_around_any_guard(
    parser: Any, tmp_path: Path, said: dict[str, Any], why: str
) -> None:
    with pytest.raises(ServeError) as refused:
        check_parsed(parsed(parser, tmp_path, ("vote",), said), parser.get_default)
    assert why in str(refused.value)


def test_processors_and_modes_of_a_file_do_not_replace_ours(parser: Any, tmp_path: Path) -> None:
    said = {"logits-processors": ["a:B"], "logprobs-mode": "raw_logprobs", "generation-config": "auto"}
    made = parsed(parser, tmp_path, ("vote",), said)
    check_parsed(made, parser.get_default)
    assert made.logits_processors == ["lvlm_guard.serve.vote.processor:VoteProcessor"]
    assert (made.logprobs_mode, made.generation_config) == ("processed_logprobs", "vllm")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"enable-lora": True}, WHY["lora"]),
        ({"pipeline-parallel-size": 2}, WHY["pipeline"]),
        ({"kv-cache-dtype": "fp8"}, WHY["cache dtype"]),
        ({"enable-mm-embeds": True}, WHY["image embeddings"]),
        ({"skip-mm-profiling": True}, "memory must be measured"),
    ],
)
def test_a_file_can_not_bring_in_what_breaks_a_twin(
    parser: Any, tmp_path: Path, said: dict[str, Any], why: str
) -> None:
    with pytest.raises(ServeError) as refused:
        check_parsed(parsed(parser, tmp_path, ("agla",), said), parser.get_default)
    assert why in str(refused.value)
    check_parsed(parsed(parser, tmp_path, ("vote",), said), parser.get_default)


def test_the_vocabulary_travels_with_the_configuration_beside_the_users_own(parser: Any, tmp_path: Path) -> None:
    made = parsed(parser, tmp_path, ("vote",), {})
    told = made.additional_config["lvlm_guard_objects"]
    assert len(told) == 80
    assert next(words for words in told if "sofa" in words)[0] == "couch"
