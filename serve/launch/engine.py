"""The process that runs vLLM: `python -m lvlm_guard.serve.launch.engine OPTIONS`, vLLM's `serve` without its command.

The `vllm` command asks for the version of a distribution that the build for CPUs does not have, and
`python -m vllm.entrypoints.openai.api_server` does not heed --api-server-count.
"""

from __future__ import annotations

import sys
from typing import Any

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.command import FRONT


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
    check(parsed)
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


def check(parsed: Any) -> None:
    """Look once more at what vLLM understood: a --config file can say what the command line may not.

    Raises:
        ServeError: there is no front, or a way around it.
    """
    around = [name for name in ("headless", "grpc", "grpc_port", "uds", "api_key") if getattr(parsed, name, None)]
    if around or parsed.middleware != [FRONT] or not parsed.trust_request_mm_kwargs:
        named = ", ".join("--" + name.replace("_", "-") for name in around) or "--middleware"
        raise ServeError(f"{named} is set, perhaps by a --config file, and would go around the guard: leave it out.")


if __name__ == "__main__":
    main(sys.argv[1:])
