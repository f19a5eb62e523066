"""`lvlm-guard train dual-prompt` and `train ranker` from their options to their reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from lvlm_guard.adapters import load_adapter
from lvlm_guard.adapters.data.read import world_facts
from lvlm_guard.adapters.training.commands import Training
from lvlm_guard.cli.console import reporting

PARTS = {"train": 16, "val": 10, "test": 10}
SMALL = ("--steps", 2, "--batch", 4, "--measure-every", 2)
RANKER = ("--width", 16, "--heads", 2, "--relations", 2)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def captioned(tmp_path):
    return _written(tmp_path / "captions", "captions")


@pytest.fixture
def valued(tmp_path):
    return _written(tmp_path / "values", "brightness")


def _written(folder, kind):
    """Write the world's pictures and facts as a user would hold them; the third training picture is damaged."""
    folder.mkdir()
    found = []
    for part, n in PARTS.items():
        data = world_facts(kind, part, n)
        for one in data.facts:
            name = f"{part}-{one.image.rpartition('/')[2]}.png"
            data.store.load(one.image).save(folder / name)
            found.append(replace(one, image=name))
    whole = (folder / "train-2.png").read_bytes()
    (folder / "train-2.png").write_bytes(whole[: len(whole) // 2])
    return replace(data, rows=found).write(folder / "facts.jsonl")


@pytest.mark.slow
def test_captions_become_a_retriever_measured_beside_its_baselines(run, captioned, tmp_path):
    out = tmp_path / "out"
    call = ("train", "dual-prompt", "--data", captioned, "--out", out, *SMALL, "--compare", "--json")
    refused = run(*call)
    assert refused.code == 1
    assert "train-2.png" in refused.err
    assert "--on-bad skip" in refused.err
    ran = run(*call, "--on-bad", "skip", "--depth", 2)
    assert ran.code == 0, ran.err
    assert "1 pictures can't be read" in ran.err
    told = ran.object
    assert told["command"] == "train dual-prompt"
    assert {row["method"] for row in told["rows"]} >= {"dual-prompt", "clip", "coop", "maple", "dual-prompt-maple"}
    assert {"i2t_r1", "t2i_r10", "swap_auroc", "swap_auroc_colour", "accuracy_category"} <= {
        row["metric"] for row in told["rows"]
    }
    assert told["gallery"]["pictures"] == 10
    retriever = load_adapter(out)
    picture = world_facts("captions", "test", 1).captions
    scores = retriever.score([picture.load(picture.rows[0].image)], ["a dog", "a cat"])
    assert scores.shape == (1, 2)
    assert load_adapter(out / "baselines" / "clip").card.calibration is not None
    page = (out / "report.html").read_text()
    assert "Training loss" in page
    assert "beats" in page or "does not win here" in page
    assert "| i2t_r1 |" in (out / "report.md").read_text()
    again = run(*call, "--on-bad", "skip", "--depth", 2)
    assert again.object["rows"] == told["rows"]
    assert run(*call, "--on-bad", "skip", "--depth", 1).code == 1


@pytest.mark.slow
def test_values_become_a_ranker_measured_beside_its_baselines(run, valued, tmp_path):
    out = tmp_path / "out"
    call = ("train", "ranker", "--data", valued, "--out", out, *SMALL, *RANKER, "--on-bad", "skip", "--compare")
    ran = run(*call, "--json")
    assert ran.code == 0, ran.err
    told = ran.object
    assert {row["method"] for row in told["rows"]} == {
        "ranker", "clip", "linear-probe", "ranker-clip", "ranker-linear-probe",
    }  # fmt: skip
    assert told["lists"] == {"image": 10}
    ranker = load_adapter(out)
    picture = world_facts("captions", "test", 2).captions
    scores, logits = ranker.rank([picture.load(row.image) for row in picture.rows], ranker.card.asked("image"))
    assert scores.shape == (2,)
    assert torch.equal(logits, -logits.T)
    assert json.loads((out / "report.json").read_text())["kept"][0]["kept"] == 2
    shown = run(*call)
    assert "linear-probe" in shown.out
    assert "report.html" in shown.out


@pytest.mark.slow
def test_presets_are_listed_with_what_they_lack_and_trained_by_name(run, captioned, tmp_path):
    rows = {row["name"]: row for row in run("train", "presets", "--json").object["rows"]}
    assert {(name, row["row"]) for name, row in rows.items()} >= {("maple", 11), ("promptsrc", 58), ("coprompt", 41)}
    assert all(row["exact"] is (not row["lacks"]) and row["identifier"] for row in rows.values())
    out = tmp_path / "out"
    call = ("train", "dual-prompt", "--data", captioned, "--on-bad", "skip", "--out", out, *SMALL, "--depth", 2)
    ran = run(*call, "--preset", "promptsrc", "--json")
    assert ran.code == 0, ran.err
    assert "promptsrc (arXiv:2307.06948) is not exact here" in ran.err
    assert ran.object["plan"]["prompts"] == "independent"
    assert ran.object["plan"]["losses"]["anchoring_text"] == 25
    assert (ran.object["recipe"]["optimizer"], ran.object["recipe"]["rate"]) == ("sgd", 2.5e-3)
    refused = run(*call, "--preset", "promtsrc")
    assert refused.code == 2
    assert "Did you mean 'promptsrc'" in refused.err


@pytest.mark.slow
def test_several_presets_are_trained_for_claims_and_put_in_one_table_beside_clip(run, captioned, tmp_path):
    out = tmp_path / "out"
    call = ("train", "claims", "--data", captioned, "--on-bad", "skip", "--out", out, *SMALL, "--depth", 1, "--compare")
    ran = run(*call, "--preset", "maple", "--preset", "pacbayes", "--json")
    assert ran.code == 0, ran.err
    told = ran.object
    found = {(row["method"], row["metric"]): row["value"] for row in told["rows"]}
    named = (
        "verifier_auroc",
        "brier",
        "claims_auroc_base",
        "claims_auroc_novel",
        "swap_auroc_colour",
        "i2t_r1",
        "t2i_r1",
    )
    for metric in (*named, "kept", "parameters", "seconds"):
        for method in ("maple", "pacbayes", "clip"):
            assert (method, metric) in found, metric
    assert found["maple", "parameters"] > found["pacbayes", "parameters"] == found["clip", "parameters"] == 0
    assert {metric for method, metric in found if method == "linear-probe"} == {
        "verifier_auroc",
        "brier",
        "claims_auroc",
        "claims_auroc_base",
    }
    assert {row["baseline"] for row in told["rows"] if row["method"].startswith("pacbayes-")} == {"clip"}
    assert told["withheld"]
    assert told["presets"]["maple"]["plan"]["losses"]["claims"] == 1
    assert load_adapter(out / "maple").card.configuration == "maple"
    searched = load_adapter(out / "pacbayes").card
    assert (searched.configuration, searched.lacks[:9]) == ("pacbayes", "the prior")
    assert run(*call, "--preset", "maple", "--preset", "pacbayes", "--json").object["rows"] == told["rows"]
    assert run(*call, "--preset", "coop", "--preset", "coop").code == 2
    # what the last one lacks is said before the first one is trained
    lacking = run(*call, "--preset", "restore", "--preset", "ipo")
    assert (lacking.code, (out / "restore").exists()) == (2, False)
    assert "--proposer" in lacking.err


@pytest.mark.slow
def test_options_come_from_a_file_and_the_command_line_goes_before_it(run, valued, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {valued}\non-bad: skip\nsteps: 4\nbatch: 4\nmeasure-every: 2\nwidth: 16\nheads: 2\n")
    ran = run("train", "ranker", "--config", config, "--steps", 2, "--relations", 2, "--out", tmp_path / "o", "--json")
    assert ran.code == 0, ran.err
    assert (ran.object["recipe"]["steps"], ran.object["recipe"]["batch"]) == (2, 4)
    config.write_text("stepz: 4\n")
    refused = run("train", "ranker", "--config", config, "--out", tmp_path / "o")
    assert refused.code == 2
    assert "no option 'stepz'" in refused.err


@pytest.mark.parametrize("seeds", ["'3,5'", "[3, 5]"])
@pytest.mark.parametrize("column", ["image=file", "[image=file]"])
def test_lists_of_a_file_are_written_as_yamls_own_too(tmp_path, seeds, column):
    got = []

    def train(training: Training) -> None:
        got.append((training.seeds, training.column, training.images, training.batch))

    config = tmp_path / "run.yaml"
    config.write_text(f"seed: {seeds}\ncolumn: {column}\nimages: photos\nbatch: null\n")
    app = typer.Typer()
    app.command()(reporting(train))
    done = CliRunner().invoke(app, ["--config", str(config)])
    assert (done.exit_code, got) == (0, [((3, 5), ("image=file",), Path("photos"), 32)]), done.output


@pytest.mark.slow
def test_several_seeds_make_an_adapter_each(run, valued, tmp_path):
    out = tmp_path / "out"
    ran = run(
        "train",
        "ranker",
        "--data",
        valued,
        "--out",
        out,
        *SMALL,
        *RANKER,
        "--on-bad",
        "skip",
        "--seeds",
        "3,5",
        "--json",
    )
    assert ran.code == 0, ran.err
    first, second = (out / f"seed-{seed}" / "adapter_model.safetensors" for seed in (3, 5))
    assert first.read_bytes() != second.read_bytes()
    assert ran.object["rows"] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--seeds", "one"), "--seeds"),
        (("--seeds", "1,1"), "different"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--clip", "nowhere"), "nowhere"),
        (("--depth", 40), "depth"),
        (("--prompts", "mapel"), "maple"),
    ],
)
def test_what_can_not_be_is_refused_in_a_message(run, tmp_path, options, said):
    ran = run("train", "dual-prompt", "--out", tmp_path / "out", "--pictures", 8, "--validation", 4, *SMALL, *options)
    assert ran.code in (1, 2)
    assert said in ran.err
