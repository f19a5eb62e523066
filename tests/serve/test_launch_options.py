"""What `lvlm-guard serve` makes of its options and vLLM's, before anything starts."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from lvlm_guard.cli.app import app
from lvlm_guard.errors import KnobError, MissingExtraError, WeightsError
from lvlm_guard.serve.commands import welcome
from lvlm_guard.serve.engine.refuse import WHY
from lvlm_guard.serve.errors import ServeError
from lvlm_guard.serve.front.settings import FrontSettings, limits_of
from lvlm_guard.serve.launch import refused
from lvlm_guard.serve.launch.checkpoint import Checkpoint
from lvlm_guard.serve.launch.command import (
    adapters,
    command,
    environment,
    for_front,
    for_matcher,
    front_command,
)
from lvlm_guard.serve.launch.installed import Installed, check_release, installed, pinned
from lvlm_guard.serve.launch.parts import Ready
from lvlm_guard.serve.launch.passed import Passed
from lvlm_guard.serve.launch.refused import branched, guards_of

CPU, CUDA = Installed("0", cpu=True), Installed("0", cpu=False, cuda=True)
LLAVA, QWEN = "LlavaForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"


def checkpoint(architecture: str = LLAVA, options: str = "", **config: Any) -> Checkpoint:
    return Checkpoint("org/model", "org/model", {"architectures": [architecture], **config}, Passed(options.split()))


def words(
    of: Checkpoint | None = None, machine: Installed = CPU, guards: tuple[str, ...] = ("agla", "vote"), **options: Any
) -> list[str]:
    of = of or checkpoint()
    twin = of.twin if branched(guards) else None
    more = {"names": ("name",), "most_pictures": 1, "uds": "/tmp/x/vllm.sock", "eager": False, "twin": twin}
    return command(of, guards, machine, **(more | options))


def value(line: list[str], option: str) -> str:
    """Return what vLLM takes: the last value of an option."""
    return line[len(line) - line[::-1].index(option)]


@pytest.mark.parametrize(
    "written", ["--pipeline-parallel-size 2", "--pipeline-parallel-size=2", "--pipeline_parallel_size 2", "-pp 2"]
)
def test_an_option_is_known_however_it_is_written(written: str) -> None:
    passed = Passed(["--max-model-len", "64", *written.split(), "--seed", "-1"])
    assert passed.value("pipeline-parallel-size") == "2"
    assert passed.value("seed") == "-1"
    with pytest.raises(ServeError, match=f"--pipeline-parallel-size: {WHY['pipeline']}"):
        refused.check(passed, ("agla",), twin=True)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--api-key secret", "VLLM_API_KEY"),
        ("--middleware mine.Front", "leave it out"),
        ("--logits-processors a:B", "undo the guard"),
        ("--logprobs_mode=raw_logprobs", "depends on it"),
        ("--no-trust-request-mm-kwargs", "depends on it"),
        ("--generation-config auto", "depends on it"),
        ("--speculative-config {}", "Speculative decoding"),
        ("-sc.method=ngram", "Speculative decoding"),
        ("--speculative-config.method ngram", "Speculative decoding"),
        ("--watermark-config {}", "watermark"),
        ("--uds /tmp/x", "socket of its own"),
        ("--grpc", "front"),
        ("--headless", "front"),
        ("--model x", "--model"),
        ("--hf-overrides.architectures X", "one JSON object"),
        ("--limit-mm-per-prompt.image 3", "one JSON object"),
    ],
)
def test_an_option_that_goes_around_any_guard_is_refused(option: str, why: str) -> None:
    for guards, twin in ((("vote",), False), (("agla", "vote"), True)):
        with pytest.raises(ServeError, match=re.escape(why)):
            refused.check(Passed(option.split()), guards, twin=twin)


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--enable-lora", "lora"),
        ("--lora-modules a=b", "lora"),
        ("-dcp 2", "context"),
        ("--prefill-context-parallel-size 2", "context"),
        ("--enable-dbo", "overlap"),
        ("--enable-prompt-embeds", "prompt embeddings"),
        ("--enable_mm_embeds", "image embeddings"),
        ("--video-pruning-rate .5", "pruning"),
        ("--kv-transfer-config {}", "connector"),
        ("--kv-offloading-size 4", "connector"),
        ("--ec-transfer-config {}", "encoder connector"),
        ("--kv-cache-dtype fp8", "cache dtype"),
        ("-cc.mode=3", "compilation"),
        ("--compilation-config {}", "compilation"),
        ("-O3", "compilation"),
        ("-O 2", "compilation"),
    ],
)
def test_an_option_that_breaks_the_twin_is_refused_for_it_alone_with_the_engines_own_reason(
    option: str, why: str
) -> None:
    with pytest.raises(ServeError, match=re.escape(WHY[why])):
        refused.check(Passed(option.split()), ("agla",), twin=True)
    refused.check(Passed(option.split()), ("vote",), twin=False)


def test_all_that_is_amiss_is_said_at_once() -> None:
    with pytest.raises(ServeError) as told:
        refused.check(Passed(["--enable-lora", "--api-key", "x", "--uds", "y"]), ("agla",), twin=True)
    assert all(name in str(told.value) for name in ("--enable-lora", "--api-key", "--uds"))


def test_other_options_and_values_that_change_nothing_pass() -> None:
    line = (
        "--tensor-parallel-size 2 --data-parallel-size 2 --api-server-count 2 --max-model-len 64 --enforce-eager "
        "--pipeline-parallel-size 1 --kv-cache-dtype auto --no-enable-lora --logprobs-mode processed_logprobs "
        "--watermark 0.1"
    )
    refused.check(Passed(line.split()), ("agla", "vote"), twin=True)
    made = words(checkpoint(options=line))
    assert " ".join(made[3:]).startswith(line)


def test_what_is_the_fronts_does_not_reach_the_engine() -> None:
    line = "--shutdown-timeout 7 --ssl-certfile a --ssl-keyfile b --root-path /r --allowed-origins [] --port 1 --seed 2"
    made = words(checkpoint(options=line))
    assert not set(line.split()) & set(made) - {"--seed", "2"}
    assert value(made, "--uds") == "/tmp/x/vllm.sock"
    said = front_command(Passed(line.split()), 5, 3)
    given = {"fd": 5, "workers": 3, "timeout_graceful_shutdown": 7}
    given |= {"ssl_certfile": "a", "ssl_keyfile": "b", "root_path": "/r"}
    assert json.loads(said[-1]) == given
    assert json.loads(front_command(Passed(()), 5, 1)[-1])["timeout_graceful_shutdown"] == 30
    with pytest.raises(KnobError, match="whole seconds"):
        front_command(Passed(["--shutdown-timeout", "soon"]), 5, 1)


def test_a_word_that_is_no_option_is_refused() -> None:
    with pytest.raises(KnobError, match="--model"):
        Passed(["llava-hf/llava-1.5-7b-hf", "--max-model-len", "64"])


def test_ours_come_last_where_the_last_one_counts() -> None:
    made = words(checkpoint(options="--logprobs-mode raw_logprobs"))
    assert value(made, "--logprobs-mode") == "processed_logprobs"


@pytest.mark.parametrize(
    ("guards", "processors"),
    [
        (("agla", "vote"), ["lvlm_guard.serve.engine.guards:Guards", "lvlm_guard.serve.vote.processor:VoteProcessor"]),
        (("vcd", "apc"), ["lvlm_guard.serve.engine.guards:Guards"]),
        (("vote",), ["lvlm_guard.serve.vote.processor:VoteProcessor"]),
        (("apc", "vote"), ["lvlm_guard.serve.engine.guards:Cut", "lvlm_guard.serve.vote.processor:VoteProcessor"]),
    ],
)
def test_each_guard_has_its_processor_and_the_model_is_left_alone_without_a_twin(
    guards: tuple[str, ...], processors: list[str]
) -> None:
    made = words(guards=guards)
    start = made.index("--logits-processors") + 1
    assert made[start : start + len(processors)] == processors
    assert made[start + len(processors)].startswith("--")
    twin = bool({"agla", "vcd"} & {*guards})
    assert ("--hf-overrides" in made, "--enforce-eager" in made) == (twin, twin)


def test_overrides_and_limits_are_merged_with_the_users() -> None:
    options = '--hf-overrides {"rope_theta":5} --limit-mm-per-prompt {"audio":0} --seed 1'
    made = words(checkpoint(QWEN, options, model_type="qwen2_5_vl"), most_pictures=3)
    assert json.loads(value(made, "--hf-overrides")) == {"rope_theta": 5, "architectures": [f"Twin{QWEN}"]}
    assert json.loads(value(made, "--limit-mm-per-prompt")) == {"audio": 0, "video": 0, "image": 3}
    assert (made.count("--hf-overrides"), made.count("--limit-mm-per-prompt"), value(made, "--seed")) == (1, 1, "1")
    plain = words(checkpoint(QWEN, options, model_type="qwen2_5_vl"), guards=("vote",))
    assert json.loads(value(plain, "--hf-overrides")) == {"rope_theta": 5}
    assert json.loads(value(plain, "--limit-mm-per-prompt")) == {"audio": 0, "image": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ('--hf-overrides {"architectures":["X"]}', "TwinLlava"),
        ("--hf-overrides {", "no JSON object"),
        ('--limit-mm-per-prompt {"image":2}', "--most-pictures"),
        ("--limit-mm-per-prompt [1]", "no JSON object"),
    ],
)
def test_what_can_not_be_merged_is_refused(options: str, said: str) -> None:
    with pytest.raises(KnobError, match=said):
        words(checkpoint(options=options))


def test_a_gpu_gets_graphs_of_whole_decode_steps_unless_eager_is_asked_for() -> None:
    graphs = json.loads(value(words(machine=CUDA), "--compilation-config"))
    assert graphs == {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    assert "--enforce-eager" not in words(machine=CUDA)
    for made in (words(machine=CUDA, eager=True), words(checkpoint(options="--enforce-eager"), CUDA)):
        assert "--enforce-eager" in made
        assert "--compilation-config" not in made
    vote = words(machine=CUDA, guards=("vote",))
    assert "--compilation-config" not in vote
    assert "--enforce-eager" not in vote


def test_adapters_keep_their_own_names_with_vote() -> None:
    of = checkpoint(options='--enable-lora --lora-modules dog=/a {"name":"cat","path":"/b"}')
    assert adapters(of.passed) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("given", "made"), [(None, None), ("", "lvlm_guard"), ("a", "a,lvlm_guard"), ("b,lvlm_guard", "b,lvlm_guard")]
)
def test_a_list_of_plugins_gets_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str | None, made: str | None
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if given is not None:
        monkeypatch.setenv("VLLM_PLUGINS", given)
    assert environment("inner", checkpoint(), CPU, tmp_path).get("VLLM_PLUGINS") == made


def test_the_engine_and_the_front_have_keys_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "the clients'")
    assert environment("inner", checkpoint(), CPU, tmp_path)["VLLM_API_KEY"] == "inner"
    settings = FrontSettings(("name",), ("apc",), upstream="/x.sock", upstream_key="inner")
    made = for_front(settings, tmp_path)
    assert made["VLLM_API_KEY"] == "the clients'"
    assert FrontSettings.from_environment(made) == settings
    assert "inner" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"most_body": "0"}, "most_body=0"),
        ({"most_body": "many"}, "most_body=many"),
        ({"body_seconds": "nan"}, "body_seconds=nan"),
        ({"most_bdy": "1"}, "Did you mean 'most_body'"),
        ({"token": "1"}, "no limit 'token'"),
    ],
)
def test_a_limit_is_checked_before_anything_starts(given: dict[str, str], said: str) -> None:
    with pytest.raises(ServeError, match=said):
        limits_of(given)
    assert limits_of({"most_body": "1000", "body_seconds": "2.5"}) == {"most_body": 1000, "body_seconds": 2.5}


def test_a_server_that_no_guard_was_tried_with_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ServeError, match="VLLM_USE_RUST_FRONTEND"):
        refused.check(Passed(()), ("vote",), twin=False)


def test_the_matcher_service_gets_neither_key_nor_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    monkeypatch.setenv("LVLM_GUARD_FRONT", "token")
    monkeypatch.setenv("LVLM_GUARD_UPSTREAM_KEY", "upstream's")
    assert not {"secret", "token", "upstream's"} & set(for_matcher().values())


def test_guards_follow_from_the_model_and_those_without_a_twin_are_refused() -> None:
    assert guards_of(None, checkpoint()) == ("agla", "vote")
    assert guards_of(None, checkpoint("InternVLChatModel")) == ("vote",)
    assert guards_of(None, checkpoint(vision_config={"model_type": "pixtral"})) == ("vote",)
    assert guards_of(("vote", "apc", "vote"), checkpoint()) == ("vote", "apc")
    assert guards_of(("vote", "apc"), checkpoint("InternVLChatModel")) == ("vote", "apc")
    with pytest.raises(ServeError, match=r"agla.*InternVLChatModel has none, since.*-hf.*Qwen2_5_VL.*--guards vote"):
        guards_of(("agla", "vote"), checkpoint("InternVLChatModel"))
    gemma = checkpoint("Gemma3ForConditionalGeneration")
    assert (guards_of(None, gemma), guards_of(None, gemma, cpu=True)) == (("agla", "vote"), ("vote",))
    with pytest.raises(ServeError, match=r"Gemma3.* has none here: .*both ways"):
        guards_of(("vcd",), gemma, cpu=True)
    with pytest.raises(ServeError, match="Did you mean 'agla'"):
        guards_of(("alga",), checkpoint())
    with pytest.raises(ServeError, match="No guard"):
        guards_of((), checkpoint())


def test_the_embedded_model_has_a_twin_and_its_image_token_is_no_question() -> None:
    read = Checkpoint.of("embedded", Passed(()))
    assert read.twin == "TwinLlavaForConditionalGeneration"
    assert read.no_question() == ("<image>", "<|vision_start|>", "<|vision_end|>")


def test_the_frame_of_an_image_token_is_no_question(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    known = Checkpoint.of("embedded", Passed(())).tokenizer
    known.add_special_tokens({"additional_special_tokens": ["<|image_pad|>"]})
    known.save_pretrained(tmp_path)
    token = AutoTokenizer.from_pretrained(tmp_path).convert_tokens_to_ids("<|image_pad|>")
    (tmp_path / "config.json").write_text(
        json.dumps({"architectures": [QWEN], "model_type": "qwen2_5_vl", "image_token_id": token})
    )
    read = Checkpoint.of(str(tmp_path), Passed(()))
    assert read.no_question() == ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<image>")


def test_a_model_that_is_not_there_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="hf download org/none"):
        Checkpoint.of("org/none", Passed(()))
    with pytest.raises(WeightsError, match="Check that its folder is complete"):
        Checkpoint.of(str(tmp_path), Passed(()))


def test_the_pinned_release_is_the_one_that_the_project_names() -> None:
    root = Path(__file__).parents[2]
    assert f'serve = ["vllm=={pinned()}"]' in (root / "pyproject.toml").read_text()
    check_release(Installed(pinned(), cpu=True))
    with pytest.raises(ServeError, match=rf"vLLM 0\.1\.2 is installed.*{re.escape(pinned())}.*--guards vote"):
        check_release(Installed("0.1.2", cpu=False))


@pytest.mark.skipif(find_spec("vllm") is not None, reason="this environment has vllm")
def test_without_vllm_the_command_says_what_to_install() -> None:
    from typer.testing import CliRunner

    with pytest.raises(MissingExtraError, match=r"pip install 'lvlm-guard\[serve"):
        installed()
    told = CliRunner().invoke(app, ["serve", "--port", "0", "--max-model-len", "64"])
    assert told.exit_code == 1
    assert "pip install 'lvlm-guard[serve" in told.stderr


def test_the_example_of_an_open_server_is_python_for_its_first_guard() -> None:
    server = Ready("http://127.0.0.1:8000", ("m", "m-vote"), ("vote",), "http://127.0.0.1:1", "blip@1", 7)
    told, _, example = welcome(server).partition("\n\n")
    assert "http://127.0.0.1:8000/v1: m, m-vote" in told
    compile(example, "example", "exec")
    assert 'model="m-vote"' in example
