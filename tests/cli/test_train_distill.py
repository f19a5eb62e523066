"""`lvlm-guard train distill` from its options to its report."""

import json
import subprocess
import sys
import time

import peft
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from lvlm_guard.adapters.distill.lessons import Lessons
from lvlm_guard.cli.console import reporting
from lvlm_guard.embedded.world import CAPTION_PROMPT, scenes
from lvlm_guard.pretrained import ask, load_model, spoken

SMALL = ("--questions", 6, "--held-out", 2, "--steps", 2, "--batch", 2, "--save-every", 1, "--no-measure")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(scenes("val", 7).image):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:500])
    return folder


@pytest.mark.slow
def test_a_folder_of_pictures_becomes_an_adapter_with_report_and_card(run, photos, tmp_path):
    out = tmp_path / "out"
    ran = run("train", "distill", "--images", photos, "--out", out, *SMALL, "--json")
    assert ran.code == 0, ran.err
    told = ran.object
    assert told["command"] == "train distill"
    parts = told["answers"]
    assert parts["train"]["pictures"] + parts["held-out"]["pictures"] == 6
    assert parts["train"]["failed"] + parts["held-out"]["failed"] == 1
    assert {row["metric"] for row in told["rows"]} >= {"agreement", "changed", "kl"}
    model, processor = load_model(adapter=str(out))
    assert isinstance(model, peft.PeftModel)
    inputs = ask(processor, [[Image.open(photos / "0.png")]], [CAPTION_PROMPT])
    tokens = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1] :].tolist()
    assert spoken(processor, tokens).startswith("the image")
    card, page = (out / "README.md").read_text(), (out / "report.html").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "**Nothing guards its answers any more**" in card
    assert "--enable-lora" in card
    assert "distilled, plain greedy" in page
    assert "guarded" not in json.loads((out / "adapter_config.json").read_text()).get("base_model_name_or_path", "")
    assert json.loads((out / "report.json").read_text())["seeds"] == [0]


@pytest.mark.slow
def test_several_seeds_make_an_adapter_each_and_a_second_call_does_nothing_twice(run, tmp_path):
    out = tmp_path / "out"
    call = ("train", "distill", "--out", out, "--pictures", 4, *SMALL, "--seeds", "3,5")
    assert run(*call).code == 0
    files = [out / f"seed-{seed}" / "adapter_model.safetensors" for seed in (3, 5)]
    compared = [out / f"seed-{seed}" / "held-out.json" for seed in (3, 5)]
    answers = sorted((out / "answers").glob("*.jsonl"))
    before = [path.stat().st_mtime_ns for path in (*files, *compared, *answers)]
    assert files[0].read_bytes() != files[1].read_bytes()
    assert run(*call).code == 0
    assert [path.stat().st_mtime_ns for path in (*files, *compared, *answers)] == before


@pytest.mark.slow
def test_other_lessons_in_the_same_folder_are_refused_and_another_recipe_trains_on_request(run, tmp_path):
    out = tmp_path / "out"
    call = ("train", "distill", "--out", out, "--pictures", 4, *SMALL)
    assert run(*call).code == 0
    first = (out / "adapter_model.safetensors").read_bytes()
    answers = (out / "answers" / "train-0.jsonl").stat().st_mtime_ns
    ran = run(*call, "--method", "agla")
    assert ran.code == 1
    assert "method 'vote', now 'agla'" in ran.err
    ran = run(*call, "--hard")
    assert ran.code == 1
    assert "soft True, now False" in ran.err
    assert run(*call, "--hard", "--retrain").code == 0
    assert (out / "adapter_model.safetensors").read_bytes() != first
    assert (out / "answers" / "train-0.jsonl").stat().st_mtime_ns == answers


@pytest.mark.slow
def test_prompts_and_objects_come_from_files(run, tmp_path):
    prompts, objects = tmp_path / "prompts.txt", tmp_path / "objects.txt"
    prompts.write_text(f"# mine\n{CAPTION_PROMPT}\nis there {{article}} {{object}} in the image ?\n")
    objects.write_text("dog\napple\n")
    out = tmp_path / "out"
    ran = run("train", "distill", "--out", out, "--pictures", 3, *SMALL, "--prompts", prompts, "--objects", objects)
    assert ran.code == 0, ran.err
    lines = [json.loads(line) for line in (out / "answers" / "train-0.jsonl").read_text().splitlines()]
    asked = {answer["prompt"] for line in lines for answer in line["answers"]}
    assert asked == {CAPTION_PROMPT, "is there a dog in the image ?", "is there an apple in the image ?"}


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--model", "some/model"), 1, "--images"),
        (("--images", "nowhere"), 1, "no folder"),
        (("--method", "votes"), 2, "Did you mean 'vote'"),
        (("--knob", "lamda=2"), 2, "lam"),
        (("--seeds", "0,x"), 2, "whole numbers"),
        (("--seeds", "1,1"), 1, "different numbers"),
        (("--prompts", "nowhere.txt"), 2, "a prompt a line"),
        (("--objects", "nowhere.txt"), 2, "one object a line"),
        (("--pictures", "40000"), 1, "training scenes"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_answered(run, tmp_path, options, code, says):
    ran = run("train", "distill", "--out", tmp_path / "out", *options)
    assert ran.code == code
    assert says in " ".join(ran.err.split())
    assert not (tmp_path / "out" / "answers").exists()


def test_pictures_that_cannot_be_read_stop_the_run_on_request(run, photos, tmp_path):
    ran = run("train", "distill", "--images", photos, "--out", tmp_path / "out", *SMALL, "--corrupt", "refuse")
    assert ran.code == 1
    assert "3.png" in ran.err


@pytest.mark.parametrize("path", ["photos", "photos/", "./photos"])
def test_a_folder_is_the_same_lesson_however_its_path_is_written(path):
    def teach(lessons: Lessons) -> None:
        assert lessons == Lessons(images="photos")

    app = typer.Typer()
    app.command()(reporting(teach))
    assert CliRunner().invoke(app, ["--images", path]).exit_code == 0


def killed_once(command, there):
    """Start a command, and kill it as soon as something is there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 200
        while not there() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        process.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine
def test_killed_while_it_answers_and_while_it_trains_it_ends_as_an_unbroken_run_does(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = ("--pictures", "40", "--questions", "6", "--held-out", "2", "--at-once", "32", "--steps", "12")
    command = [sys.executable, "-m", "lvlm_guard", "train", "distill", *options, "--batch", "4", "--save-every", "2"]
    command += ["--no-measure", "--out"]
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    answers = broken / "answers" / "train-0.jsonl"
    killed_once([*command, str(broken)], lambda: answers.exists() and answers.read_text().count("\n") >= 8)
    assert answers.read_text().count("\n") < 40
    killed_once([*command, str(broken)], lambda: any(broken.rglob("*-4/trainer_state.json")))
    assert not (broken / "adapter_model.safetensors").exists()
    subprocess.run([*command, str(broken)], check=True, capture_output=True)
    for name in ("answers/train-0.jsonl", "answers/held-out-0.jsonl", "adapter_model.safetensors"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine
def test_a_short_training_on_the_embedded_world_moves_the_guards_gain_into_the_weights(run, tmp_path):
    """20 steps on 48 scenes, about a minute; the report's own command trains longer."""
    torch.set_num_threads(1)
    out = tmp_path / "out"
    options = ("--pictures", 48, "--questions", 24, "--held-out", 16, "--steps", 20, "--save-every", 10)
    ran = run("train", "distill", "--out", out, *options, "--json")
    assert ran.code == 0, ran.err
    rows = {(row["method"], row["task"], row["metric"]): row for row in ran.object["rows"]}
    gain = rows["distilled-greedy", "pope_all", "accuracy"]
    assert gain["low"] > 0.02
    assert rows["distilled-greedy", "chair", "chair_i"]["value"] < 0
    assert rows["distilled", "held_out_question", "agreement"]["value"] > 0.9
    assert rows["distilled", "untouched_question", "changed"]["value"] < 0.02
    assert {(row["task"], row["metric"]) for row in ran.object["by_seed"]} >= {("pope_all", "accuracy")}
    assert (out / "eval" / "report.html").is_file()
    assert "POPE random" in (out / "README.md").read_text()
