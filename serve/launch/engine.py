"""The process that runs vLLM: `python -m lvlm_guard.serve.launch.engine OPTIONS`, vLLM's `serve` without its command.

The `vllm` command asks for the version of a distribution that the build for CPUs does not have, and
`python -m vllm.entrypoints.openai.api_server` does not heed --api-server-count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lvlm_guard.serve.engine.plugin import CUT, TWINS
from lvlm_guard.serve.engine.plugin import PROCESSOR as TWIN_PROCESSOR
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.refused import ALWAYS, parsed_amiss
from lvlm_guard.serve.vote import PROCESSOR as VOTE_PROCESSOR


def main(options: list[str]) -> None:
    """Run vLLM's server until a signal ends it.

    Args:
        options: vLLM's.

    Raises:
        ServeError: they leave the front out, whatever file or option said so.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_env_setup()
    # no abbreviations: an option that is refused by its name must not come in by half of it
    parser = make_arg_parser(FlexibleArgumentParser(prog="lvlm-guard serve", allow_abbrev=False))
    parsed = parser.parse_args(options)
    check(parsed, parser.get_default)
    if str(parsed.data_parallel_size) != Passed(options).value("data-parallel-size", "1"):
        raise ServeError("--data-parallel-size: each engine is checked, so give it on the command line.")
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def check(parsed: Any, default: Callable[[str], Any]) -> None:
    """Look once more at what vLLM understood: a --config file can say what the command line may not.

    Args:
        parsed: vLLM's namespace.
        default: of an option, by its name there.

    Raises:
        ServeError: there is a way around the front, or what would break a guard.
    """
    twin = bool(set(TWINS) & set((parsed.hf_overrides or {}).get("architectures") or ()))
    found = parsed_amiss(parsed, default, twin=twin)
    ours = {
        "middleware": [],
        "trust_request_mm_kwargs": True,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
    }
    found += [
        f"--{name.replace('_', '-')}: lvlm-guard serve sets it, and it would go around the guard: leave it out."
        for name, wanted in ours.items()
        if getattr(parsed, name) != wanted
    ]
    if set(parsed.logits_processors or ()) - {TWIN_PROCESSOR, CUT, VOTE_PROCESSOR}:
        found.append(f"--logits-processors: {ALWAYS['logits-processors']}")
    if found:
        raise ServeError("An option, perhaps of a --config file, is refused. " + " ".join(found))


if __name__ == "__main__":
    main(sys.argv[1:])
