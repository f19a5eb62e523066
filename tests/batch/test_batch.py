"""`lvlm-guard batch`: each row of a data set is answered once, guarded, whatever is done to it."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from data_sets import BAD, PROMPT, answers, as_lines, as_parquet, as_tar, png, rows
from openai_endpoint import OpenAIEndpoint, Reply, Request, load
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard import guard
from lvlm_guard.batch.answering import Answered, Local
from lvlm_guard.batch.how import How
from lvlm_guard.batch.plan import PLAN, plan_of
from lvlm_guard.batch.rows import cut, read, row_of
from lvlm_guard.batch.run import answer, here, run
from lvlm_guard.cli.app import app
from lvlm_guard.errors import KnobError, UnprovedError
from lvlm_guard.pretrained import ask, load_model
from lvlm_guard.ranks import Place

HOW = How(max_new_tokens=20, batch=4)


def batch(*options: object, code: int = 0) -> Any:
    answer = CliRunner().invoke(app, ["batch", *map(str, options)])
    assert answer.exit_code == code, (answer.output, answer.exception)
    return answer.output


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lines")
    data = as_lines(folder / "data", rows(20))
    batch(data, "--out", folder / "out", "--max-new-tokens", 20, "--batch", 4, "--shard-rows", 6)
    return data, folder / "out"


@pytest.mark.slow
def test_every_row_has_the_answer_that_generate_gives_and_the_proof_of_its_guard(done: tuple[Path, Path]) -> None:
    found = answers(done[1])
    assert [row["id"] for row in found] == [f"r{number:03d}" for number in range(20)]
    assert [row["index"] for row in found] == list(range(20))
    model, processor = guard(*load_model("embedded"), "agla")
    for number, row in list(enumerate(found))[::3]:
        if number in BAD:
            assert (row["text"], row["method"], row["tokens"]) == (None, None, 0)
            continue
        picture = Image.open(io.BytesIO(png(number)))
        inputs = ask(processor, [[picture]], [rows(20)[number]["prompt"]])
        out = model.generate(**inputs, max_new_tokens=20, do_sample=False, return_dict_in_generate=True)
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
        assert row["text"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
        assert (row["method"], row["tokens"], row["error"]) == ("agla", len(tokens), None)
        assert row["knobs"] == Answered(method="agla", knobs=out.guard.knobs).digest
        trace = json.loads(row["trace"])
        assert trace["overruled"] == sum(step.overruled is not None for step in out.guard.steps[0])
        assert len(trace["matches"]) <= 1
    file = next(iter(sorted(done[1].glob("part-*.parquet"))))
    (knobs,) = json.loads(pq.read_schema(file).metadata[b"lvlm_guard.knobs"]).values()
    assert knobs["alpha"] == 2.0
    assert "matcher" in knobs


def test_what_is_wrong_with_a_row_is_told_in_it(done: tuple[Path, Path]) -> None:
    errors = {row["index"]: row["error"] for row in answers(done[1]) if row["error"]}
    assert set(errors) == set(BAD)
    assert "r003.png" in errors[3]
    assert "prompt is empty" in errors[5]
    assert "no picture" in errors[8]


@pytest.mark.parametrize("write", [as_parquet, as_tar])
def test_the_same_rows_in_another_format_have_the_same_answers(
    done: tuple[Path, Path], tmp_path: Path, write: Any
) -> None:
    data = write(tmp_path / "data", rows(20))
    plan = plan_of([data.parent], tmp_path / "out", HOW, 6)
    assert [(piece.first, piece.count) for piece in plan.pieces] == [(0, 6), (6, 6), (12, 6), (18, 2)]
    assert sum(count for count, _ in here(plan, tmp_path / "out", Place(), "cpu", 1)) == 20
    for one, other in zip(answers(tmp_path / "out"), answers(done[1]), strict=True):
        assert one["text"] == other["text"]
        assert (one["error"] is None) == (other["error"] is None)
        assert other["id"] in one["id"]


def test_every_piece_can_be_read_by_itself(tmp_path: Path) -> None:
    given = rows(23)
    for write in (as_lines, as_parquet, as_tar):
        data = write(tmp_path / write.__name__, given)
        for most in (1, 5, 100):
            plan = plan_of([data], tmp_path / f"{write.__name__}{most}", HOW, most)
            found = [row for piece in random.Random(0).sample(plan.pieces, len(plan.pieces)) for row in read(piece)]
            found.sort(key=lambda row: row.index)
            assert [row.index for row in found] == list(range(23))
            for row, wanted in zip(found, given, strict=True):
                if wanted["image"] is not None and wanted["prompt"].strip():
                    (picture,) = row.pictures
                    data_of = Path(picture).read_bytes() if isinstance(picture, str) else picture
                    assert (data_of, row.prompt) == (wanted["image"], wanted["prompt"])
                else:
                    assert row.error


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("The line is no JSON", "no JSON"), ({"prompt": 3, "image": "x"}, "prompt"), ({"image": "x"}, "prompt"),
        ({"prompt": "a", "image": 3}, "no picture"), ({"prompt": "a", "images": []}, "no picture"),
        ({"prompt": "a", "image": "http://x/y.png"}, "fetch"), ({"prompt": "a", "image": "data:x,%"}, "base64"),
        ({"prompt": "a", "images": "x.png"}, "no picture"),
    ],
)  # fmt: skip
def test_a_row_that_can_t_be_asked_says_why(fields: Any, said: str) -> None:
    assert said in row_of(0, fields, Path(), "").error


@pytest.mark.parametrize(
    ("text", "said"), [(b'{"prompt": ', "Expecting value"), (b"[1]", "'list' object"), (b"\xff", "can't decode")]
)
def test_a_sample_s_broken_text_is_told_and_the_next_one_is_read(tmp_path: Path, text: bytes, said: str) -> None:
    with tarfile.open(tmp_path / "data.tar", "w") as opened:
        for name, data in {"a.png": png(1), "a.json": text, "b.png": png(2), "b.txt": b"What is it?"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    (piece,) = plan_of([tmp_path / "data.tar"], tmp_path / "out", HOW, 5).pieces
    broken, whole = read(piece, PROMPT)
    assert (broken.id, broken.prompt) == ("a", "")
    assert "prompt can't be read" in broken.error
    assert said in broken.error
    assert (whole.id, whole.prompt, whole.error) == ("b", "What is it?", "")


@pytest.mark.parametrize("method", ["vote", "agla+rudder"])
def test_rows_before_leave_no_trace_in_a_matcher(method: str) -> None:
    local = Local(How(method=method, max_new_tokens=4))
    forgotten, forget = [], local._matcher.forget
    local._matcher.forget = lambda: (forgotten.append(local._matcher), forget())
    row = row_of(0, {"image": png(1)}, Path(), PROMPT)
    first = local([row])
    assert len(forgotten) == 1
    assert local([row]) == first
    assert len(forgotten) == 2


def test_a_row_takes_its_prompt_from_the_command_and_its_picture_from_where_it_is() -> None:
    assert row_of(2, {"image": "a.png", "id": 7}, Path("/x"), PROMPT).pictures == ("/x/a.png",)
    row = row_of(2, {"images": [{"bytes": b"1", "path": None}, "data:image/png;base64,MTI="]}, Path("/x"), PROMPT)
    assert (row.prompt, row.pictures) == (PROMPT, (b"1", b"12"))


def test_another_command_data_set_or_a_foreign_folder_is_refused(done: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = done
    same = plan_of([data], out, HOW, 6)
    assert len(same.pieces) == 4
    with pytest.raises(KnobError, match=r"other how.*alpha|other how"):
        plan_of([data], out, How(max_new_tokens=20, batch=4, knobs={"alpha": 1.0}), 6)
    with pytest.raises(KnobError, match="rows"):
        plan_of([data], out, HOW, 7)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(KnobError, match="not empty"):
        plan_of([data], tmp_path / "full", HOW, 6)
    with pytest.raises(KnobError, match="twice"):
        plan_of([data, data], tmp_path / "new", HOW, 6)
    with pytest.raises(KnobError, match="JSON lines, parquet"):
        list(cut(str(tmp_path / "full" / "thesis.tex"), 6))
    damaged = tmp_path / "x.tar"
    damaged.write_bytes(as_tar(tmp_path / "tar", rows(3)).read_bytes()[:700])
    with pytest.raises(KnobError, match="damaged"):
        list(cut(str(damaged), 6))


def test_a_plan_that_was_never_finished_or_is_being_made_by_another_process_stands_in_nobody_s_way(
    done: tuple[Path, Path], tmp_path: Path
) -> None:
    torn = tmp_path / "out" / f"{PLAN}.4711.part"
    torn.parent.mkdir()
    torn.write_text('{"how": ')
    plan = plan_of([done[0]], tmp_path / "out", HOW, 6)
    assert plan.pieces == plan_of([done[0]], done[1], HOW, 6).pieces
    told = run(plan, tmp_path / "out", lambda: here(plan, tmp_path / "out", Place(), "cpu", 1), print, False)
    assert told == {"rows": 20, "done": 20, "now": 20, "errors": 3, "finished": True}
    assert list(torn.parent.glob("*.part")) == []


def test_what_is_there_is_not_answered_again_and_a_file_cut_short_is(done: tuple[Path, Path], tmp_path: Path) -> None:
    data, out = done
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    files = sorted(before)
    first = files[1].read_bytes()
    files[1].write_bytes(first[: len(first) // 2])
    said = batch(
        data, "--out", out, "--max-new-tokens", 20, "--batch", 4, "--shard-rows", 6, "--json",
    )  # fmt: skip
    (told,) = json.loads(said[said.index("{") :])["rows"]
    assert (told["now"], told["done"], told["finished"]) == (6, 20, True)
    assert [file for file in files if file.stat().st_mtime_ns != before[file]] == [files[1]]
    assert files[1].read_bytes() == first


def test_shares_do_all_pieces_between_them(done: tuple[Path, Path], tmp_path: Path, monkeypatch: Any) -> None:
    plan = plan_of([done[0]], tmp_path / "out", HOW, 6)
    for number in (2, 0, 1):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "3")
        list(here(plan, tmp_path / "out", Place.read(None), "cpu", 1))
    assert answers(tmp_path / "out") == answers(done[1])
    with pytest.raises(KnobError, match="no share"):
        Place.read("3/3")


def test_what_is_wrong_with_all_rows_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"prompt": "a", "image": "nowhere.png"}\nnonsense\n')
    batch(tmp_path / "data.jsonl", "--out", tmp_path / "out", code=3)
    assert [bool(row["error"]) for row in answers(tmp_path / "out")] == [True, True]


def test_a_machine_that_fails_writes_no_errors_into_rows(done: tuple[Path, Path], tmp_path: Path) -> None:
    plan = plan_of([done[0]], tmp_path / "out", HOW, 6)
    local = Local(HOW, "cpu")

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    local._model.generate = broken
    with pytest.raises(RuntimeError, match="CUDA"):
        answer(plan.pieces[0], tmp_path / "out", HOW, local)

    def full(**inputs: Any) -> None:
        raise torch.OutOfMemoryError(f"{len(inputs['input_ids'])} rows")

    local._model.generate = full
    assert answer(plan.pieces[0], tmp_path / "out", HOW, local) == (6, 6)
    assert "OutOfMemoryError: 1 rows" in answers(tmp_path / "out")[0]["error"]


def test_a_server_gives_the_same_answers_and_proves_them(done: tuple[Path, Path], tmp_path: Path) -> None:
    with OpenAIEndpoint(load()) as served:
        options = ["--max-new-tokens", 20, "--shard-rows", 6, "--server", served.url, "--at-once", 5]
        batch(done[0], "--out", tmp_path / "out", *options)
        assert len(served.seen) == 20 - len(BAD)
        for one, other in zip(answers(tmp_path / "out"), answers(done[1]), strict=True):
            assert (one["text"], bool(one["error"])) == (other["text"], bool(other["error"]))
            assert one["method"] == other["method"]

        def unproved(request: Request, reply: Reply) -> Reply:
            return Reply(200, {k: v for k, v in reply.body.items() if k != "lvlm_guard"})

        plan = plan_of([done[0]], tmp_path / "other", How(server=served.url, max_new_tokens=20), 6)
        with served.faulty(unproved), pytest.raises(UnprovedError):
            list(here(plan, tmp_path / "other", Place(), "cpu", 2))
        assert answers(tmp_path / "other") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_at_ten_random_moments_leaves_every_row_once(done: tuple[Path, Path], tmp_path: Path) -> None:
    data = as_lines(tmp_path / "data", rows(250))
    command = [
        sys.executable, "-m", "lvlm_guard", "batch", str(data), "--out", str(tmp_path / "out"), "--shard-rows", "5",
        "--max-new-tokens", "20", "--batch", "4",
    ]  # fmt: skip
    draw, kills = random.Random(7), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while kills < 10:
        before = len(list(tmp_path.glob("out/part-*.parquet")))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(tmp_path.glob("out/part-*.parquet"))) == before and kills > 1:
            time.sleep(0.01)  # the first two die while they start or plan
        time.sleep(draw.random() * (1.0 if kills > 1 else 8.0))
        assert process.poll() is None, "there is too little to do: give it more rows"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    plan = plan_of([data], tmp_path / "whole", HOW, 5)
    list(here(plan, tmp_path / "whole", Place(), "cpu", 1))
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")
    assert [row["index"] for row in answers(tmp_path / "out")] == list(range(250))
