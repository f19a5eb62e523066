"""The process that runs vLLM: `python -m lvlm_guard.serve.launch.engine OPTIONS`, vLLM's `serve` without its command.

The `vllm` command asks for the version of a distribution that the build for CPUs does not have, and
`python -m vllm.entrypoints.openai.api_server` does not heed --api-server-count.
"""

from __future__ import annotations

import sys

from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.refused import check_parsed


def main(options: list[str]) -> None:
    """Run vLLM's server, with options of its own, until a signal ends it.

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
    check_parsed(parsed, parser.get_default)
    if str(parsed.data_parallel_size) != Passed(options).value("data-parallel-size", "1"):
        raise ServeError("--data-parallel-size: each engine is checked, so give it on the command line.")
    configure_logging_from_args(parsed)
    validate_parsed_serve_args(parsed)
    ServeSubcommand.cmd(parsed)


if __name__ == "__main__":
    main(sys.argv[1:])
