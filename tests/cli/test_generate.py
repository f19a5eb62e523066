from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from lvlm_guard import __version__, embedded, guard
from lvlm_guard.embedded.world import CAPTION_PROMPT, scenes

QUESTION = "is there a dog in the image ?"
Run = Callable[..., Any]


def world(number: int) -> Image.Image:
    return Image.fromarray(scenes("test", number + 1).image[number])


@pytest.fixture(scope="module")
def plain() -> Callable[[Image.Image, str], str]:
    """The embedded model's answer through transformers alone."""
    model = AutoModelForImageTextToText.from_pretrained(embedded.MODEL, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(embedded.MODEL)

    def answer(image: Image.Image, prompt: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        talk = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        inputs = processor(images=[image], text=[text], add_special_tokens=False, return_tensors="pt")
        out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    return answer


def test_compare_gives_transformers_own_answer_and_the_guarded_one(
    run: Run, plain: Callable[[Image.Image, str], str]
) -> None:
    made = run("generate", "--compare", "--json", "--image", "world:3", "--prompt", CAPTION_PROMPT)
    assert made.code == 0
    whole = made.object
    assert set(whole) >= {"command", "version", "environment", "rows"}
    assert (whole["command"], whole["version"]) == ("generate", __version__)
    greedy, vote = whole["rows"]
    assert (greedy["method"], vote["method"]) == ("greedy", "vote")
    assert greedy["answer"] == plain(world(3), CAPTION_PROMPT)
    assert greedy["trace"] is None
    assert vote["trace"]["guarded"]
    assert len(vote["trace"]["steps"][0]) == vote["tokens"]


def test_the_guarded_answer_is_what_the_python_api_gives(run: Run) -> None:
    from lvlm_guard.pretrained import ask, load_model

    knobs = ("--method", "agla", "--knob", "alpha=3", "--knob", "beta=0.05")
    made = run("generate", "--json", "--image", "world:5", *knobs).object
    model, processor = guard(*load_model(), "agla", alpha=3.0, beta=0.05)
    inputs = ask(processor, [[world(5)]], [CAPTION_PROMPT])
    out = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert made["rows"][0]["answer"] == said
    assert made["rows"][0]["trace"]["knobs"]["alpha"] == 3.0


def test_the_three_executions_say_the_same(run: Run) -> None:
    said = {
        run("generate", "--json", "--image", "world:2", "--method", "agla", "--execution", execution).object["rows"][0][
            "answer"
        ]
        for execution in ("auto", "lazy", "batched")
    }
    assert len(said) == 1


def test_a_seed_fixes_a_sampled_answer(run: Run) -> None:
    options = ("generate", "--json", "--compare", "--sample", "--temperature", "2", "--seed")
    one, again, other = (run(*options, seed).object["rows"] for seed in (1, 1, 2))
    assert [row["method"] for row in one] == ["sample", "vote"]
    assert [row["answer"] for row in one] == [row["answer"] for row in again]
    assert one[0]["answer"] != other[0]["answer"]


def test_without_any_option_the_embedded_model_describes_a_scene(run: Run) -> None:
    made = run("generate")
    assert made.code == 0
    for part in ("world:0", CAPTION_PROMPT, "vote", "overruled"):
        assert part in made.out
    assert "knows only its own world" not in made.out


def test_several_pictures_go_into_one_prompt(run: Run) -> None:
    two = ("--image", "world:1", "--image", "world:2")
    made = run("generate", "--json", *two, "--method", "agla", "--knob", "beta=0").object
    assert made["rows"][0]["trace"]["masks"] == 2


@pytest.mark.parametrize("method", ["apc", "vcd", "vote"])
def test_other_methods_answer_too(run: Run, method: str) -> None:
    row = run("generate", "--json", "--image", "world:4", "--prompt", QUESTION, "--method", method).object["rows"][0]
    assert row["method"] == row["trace"]["method"] == method
    assert row["answer"] in ("yes", "no")


def test_a_report_shows_both_answers_and_what_the_guard_looked_at(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "new" / "answer.html"
    asked = ("generate", "--method", "agla", "--knob", "beta=0", "--image", "world:6")
    made = run(*asked, "--compare", "--report", page)
    assert made.code == 0
    written = page.read_text(encoding="utf-8")
    root = ElementTree.fromstring(written.removeprefix("<!DOCTYPE html>\n"))
    pictures = [image.get("src", "") for image in root.iter("img")]
    assert len(pictures) == 3
    assert all(source.startswith("data:image/") for source in pictures)
    assert [heading.text for heading in root.iter("h3")] == ["greedy", "agla"]
    assert "://" not in written
    said = run(*asked, "--json").object["rows"][0]["answer"]
    strip = root.findall(".//p[@class='tokens']")[-1]
    words = " ".join((token.text or "").strip() for token in strip if token.text != "[end]")
    assert words == said


def test_what_a_user_asks_is_escaped_in_a_report(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    run("generate", "--prompt", "<script>alert(1)</script> is there a dog ?", "--report", page)
    assert "<script" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "text", "rocket"])
def test_real_photographs_are_taken_and_the_model_admits_that_it_does_not_know_them(
    run: Run, name: str, tmp_path: Path
) -> None:
    from skimage import data

    Image.fromarray(getattr(data, name)()).save(tmp_path / "photo.jpg")
    made = run("generate", "--image", tmp_path / "photo.jpg", "--prompt", QUESTION)
    assert made.code == 0
    assert "knows only its own world" in " ".join(made.out.split())


def test_photographs_of_scikit_learn_are_taken(run: Run, tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_images

    for number, pixels in enumerate(load_sample_images().images):
        Image.fromarray(pixels).save(tmp_path / "photo.png")
        made = run("generate", "--json", "--image", tmp_path / "photo.png", "--prompt", QUESTION, "--method", "vote")
        assert made.code == 0, number
        assert any("knows only its own world" in note for note in made.object["notes"])


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 5), (5, 3), (1200, 40)])
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "I;16", "LA"])
def test_a_picture_of_any_shape_and_mode_is_answered_and_guarded(
    run: Run, size: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    file = tmp_path / "p.tiff"
    Image.new(mode, size).save(file)
    asked = ("--prompt", QUESTION, "--method", "agla", "--knob", "beta=0")
    made = run("generate", "--json", "--image", file, *asked)
    assert made.code == 0
    trace = made.object["rows"][0]["trace"]
    assert trace["guarded"]
    assert trace["masks"] == 1


def test_notes_say_what_was_done_to_a_picture(run: Run, tmp_path: Path) -> None:
    still, moved = world(1), world(2)
    still.save(tmp_path / "two.gif", save_all=True, append_images=[moved])
    made = run("generate", "--json", "--image", tmp_path / "two.gif").object
    assert any("first of 2 frames" in note for note in made["notes"])


def test_words_that_the_model_has_not_are_named(run: Run) -> None:
    made = run("generate", "--json", "--prompt", "is there a zeppelin in the image ?").object
    assert any("zeppelin" in note for note in made["notes"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "agle"], 2, "Did you mean 'agla'"),
        (["--method", "agla", "--knob", "alpha=-1"], 2, "alpha is -1"),
        (["--knob", "beta=1.5"], 2, "beta is 1.5"),
        (["--knob", "lam=much"], 2, "give a number"),
        (["--method", "agla", "--knob", "alhpa=1"], 2, "Did you mean 'alpha'"),
        (["--knob", "lam"], 2, "NAME=VALUE"),
        (["--image", "none.png"], 1, "No picture at 'none.png'"),
        (["--image", "world:100000"], 2, "world:0 to world:"),
        (["--model", "llava-hf/none"], 2, "--prompt"),
        (["--model", "llava-hf/none", "--prompt", "x"], 2, "--image"),
        (["--model", "llava-hf/none", "--prompt", "x", "--image", "world:0"], 1, "hf download llava-hf/none"),
        (["--prompt", "  "], 1, "prompt is empty"),
        (["--device", "cuda:99"], 2, "can't be used here"),
        (["--device", "toaster"], 2, "can't be used here"),
        (["--dtype", "int8"], 2, "dtype is 'int8'"),
        (["--execution", "fast"], 2, "fast"),
        (["--max-new-tokens", "0"], 2, "max-new-tokens"),
        (["--nonsense"], 2, "nonsense"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(run: Run, arguments: list[str], code: int, message: str) -> None:
    made = run("generate", *arguments)
    assert made.code == code
    assert message in " ".join(made.err.replace("│", " ").split())
    assert made.out == ""


def test_a_picture_that_is_too_large_can_be_allowed(run: Run, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "p.png")
    refused = run("generate", "--image", tmp_path / "p.png", "--max-pixels", 1000)
    assert refused.code == 1
    assert "--max-pixels" in refused.err
    assert run("generate", "--image", tmp_path / "p.png", "--max-pixels", 0).code == 0


def test_a_folder_that_holds_no_model_is_named(run: Run, tmp_path: Path) -> None:
    made = run("generate", "--model", tmp_path, "--prompt", "x", "--image", "world:0")
    assert made.code == 1
    assert "incomplete" in made.err


def test_a_model_that_takes_no_pictures_is_refused(run: Run, tmp_path: Path) -> None:
    from transformers import LlamaConfig

    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    made = run("generate", "--model", tmp_path, "--prompt", "x", "--image", "world:0")
    assert made.code == 1
    assert "takes no pictures" in made.err


def test_a_file_that_can_not_be_written_is_an_error_and_no_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    made = run("generate", "--report", tmp_path / "file" / "a.html")
    assert made.code == 1
    assert "The system refused" in made.err


def test_verify_marks_doubtful_objects_and_changes_no_word(run: Run, tmp_path: Path) -> None:
    plain = run("generate", "--json", "--image", "world:3").object["rows"][0]
    page = tmp_path / "page.html"
    row = run("generate", "--json", "--image", "world:3", "--verify", "--report", str(page)).object["rows"][0]
    assert row["answer"] == plain["answer"]
    checked = row["trace"]["verdicts"][0]
    assert len({one["verdict"]["label"] for one in checked} & {"supported", "unsure", "unsupported"}) > 1
    assert all(
        row["answer"][one["mention"]["start"] : one["mention"]["end"]] == one["mention"]["text"] for one in checked
    )
    text = run("generate", "--image", "world:3", "--verify").out
    for one in checked:
        name, doubtful = one["mention"]["text"], one["verdict"]["label"] != "supported"
        assert (f"{name}?" in text) == doubtful
    assert "What the picture supports" in page.read_text()


def test_best_of_gives_the_answer_that_model_and_verifier_rank_first(run: Run) -> None:
    given = ("generate", "--json", "--image", "world:3", "--method", "vote", "--best-of", "4", "--seed", "1")
    row = run(*given).object["rows"][0]
    scores = [one["score"] for one in row["candidates"]]
    assert len(scores) == 4
    assert scores == sorted(scores, reverse=True)
    assert row["candidates"][0]["answer"] == row["answer"]
    assert len({one["answer"] for one in row["candidates"]}) > 1
    assert len(row["trace"]["steps"][0]) == row["tokens"]  # the trace of the best stands first
    assert run(*given).object["rows"][0]["answer"] == row["answer"]
