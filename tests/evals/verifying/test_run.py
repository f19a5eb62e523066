"""`eval verify` in this process: what it measures against other ways to it, and that nothing is asked twice."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import lvlm_guard
from lvlm_guard.adapters.loading import ADAPTERS
from lvlm_guard.errors import GuardError, UnsupportedCallError
from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.infer.generate import prepare
from lvlm_guard.evals.infer.record import code_digest
from lvlm_guard.evals.metrics import chair
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies import verify as room
from lvlm_guard.evals.studies.verify import CODE
from lvlm_guard.evals.studies.verify.judges import ClipJudge, MatcherJudge
from lvlm_guard.evals.tasks import tasks_of
from lvlm_guard.evals.tasks.world import NOUNS
from lvlm_guard.matching import Vocabulary, load_matcher
from lvlm_guard.pretrained import load_model
from lvlm_guard.verify import verify_answer

SETTINGS = Settings(tasks=("world_chair",), methods=(), limit=12, batch=5)
MATCHERS = {"blip-itm": ("blip-itm",), "dual-prompt": ("dual-prompt",)}


def verified(out: Path, matchers: dict[str, tuple[str, ...]] = MATCHERS, settings: Settings = SETTINGS) -> Any:
    return room.verify_run(replace(settings, matchers=matchers), out, echo=lambda _: None, bar=False)


def rows(folder: Path) -> list[dict[str, Any]]:
    """The table of answers in a folder."""
    return list(pq.read_table(folder / "answers.parquet").to_pylist())


def descriptions(out: Path) -> list[dict[str, Any]]:
    return rows(out / "descriptions")


def shards(folder: Path) -> list[dict[str, Any]]:
    """What a run that was stopped has left."""
    paths = sorted(folder.glob("**/answers/rank-*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines() if line.endswith("}")]


def value(report: dict[str, Any], method: str, metric: str) -> float:
    wanted = (method, None, metric)
    (found,) = (row["value"] for row in report["rows"] if (row["method"], row["baseline"], row["metric"]) == wanted)
    return float(found)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("verify")
    verified(folder)
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["blip-itm", "dual-prompt"])
def test_a_matchers_auroc_is_that_of_the_verdicts_that_verify_gives_on_chairs_labels(
    out: Path, report: dict[str, Any], name: str
) -> None:
    (task,) = tasks_of(SETTINGS)
    matcher = load_matcher(name, model=load_model()[0])
    true, p, doubtful = [], [], []
    for item, row in zip(task.items, descriptions(out), strict=True):
        checked = verify_answer(matcher, item.pictures(), row["text"], Vocabulary.of(NOUNS))
        verdicts = {one.mention.object: one.verdict for one in checked}
        scored = chair.score([{"image_id": 0, "caption": row["text"]}], {0: item.truth}, vocabulary=NOUNS)
        absent = set(verdicts) - set(item.truth)
        assert len(set(verdicts) & set(item.truth)) == scored["recalled_objects"]
        true += [one not in absent for one in verdicts]
        p += [one.p_supported for one in verdicts.values()]
        doubtful += [one.doubtful for one in verdicts.values()]
    assert value(report, name, "auroc") == pytest.approx(roc_auc_score(true, p), abs=1e-6)
    assert value(report, name, "marked") == pytest.approx(sum(doubtful) / len(doubtful))
    assert report["counts"]["mentions"] == len(true)
    assert report["counts"]["hallucinated"] == len(true) - sum(true)


def test_the_token_probability_is_that_of_a_plain_forward_pass_over_the_description(out: Path) -> None:
    (task,) = tasks_of(SETTINGS)
    model, processor = load_model()
    for item, row in list(zip(task.items, descriptions(out), strict=True))[:2]:
        inputs = prepare(processor, [item])
        start = inputs["input_ids"].shape[1]
        said = processor.tokenizer(row["text"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], said], 1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        with torch.inference_mode():
            logits = model(**whole).logits[0, start - 1 : -1].float()
        expected = logits.log_softmax(-1).gather(-1, said[0][:, None])[:, 0].tolist()
        pieces = json.loads(row["proof"])
        assert [log_prob for _, _, log_prob in pieces] == pytest.approx(expected, abs=2e-4)
        assert "".join(row["text"][start:end] for start, end, _ in pieces) == row["text"]


def test_the_detectors_on_clip_are_cosines_of_the_sentence_and_of_the_noun(out: Path, report: dict[str, Any]) -> None:
    (task,) = tasks_of(SETTINGS)
    clip = load_matcher("clip", model=load_model()[0])
    said = {row["item"]: row["text"] for row in descriptions(out)}
    items = {item.key: item for item in task.items}
    true, sentence, fine, calibrated = [], [], [], []
    for row in rows(out):
        if row["decoder"] != "clip-sentence":
            continue
        key, _, name = row["item"].partition(" ")
        picture = items[key].pictures()
        s = float(clip.similarity(picture, [said[key]])[0, 0])  # the model says one sentence
        noun = float(clip.similarity(picture, [f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}"])[0, 0])
        a, b = clip.retriever.card.calibration  # type: ignore[attr-defined]
        assert row["score"] == pytest.approx(s, abs=1e-5)
        true.append(name in items[key].truth)
        sentence.append(s)
        fine.append((s + noun) / 2)
        calibrated.append(1 / (1 + math.exp(-(a * noun + b))))
    for name, scores in (("clip-sentence", sentence), ("f-clipscore", fine), ("calibrated-clip", calibrated)):
        assert value(report, name, "auroc") == pytest.approx(roc_auc_score(true, scores), abs=1e-6)


def test_the_report_says_of_each_matcher_what_it_beats_and_names_how_it_was_made(report: dict[str, Any]) -> None:
    remarks = "\n".join(report["remarks"])
    for name in MATCHERS:
        worst = min(
            row["low"]
            for row in report["rows"]
            for other in ("calibrated-clip", "clip-sentence", "f-clipscore")
            if (row["method"], row["baseline"], row["metric"]) == (name, other, "auroc")
        )
        (verdict,) = (line for line in report["remarks"] if line.startswith(f"AUROC: {name} "))
        assert ("should not be the default" in verdict) == (worst <= 0)
    assert "dual-prompt: one training each" in remarks
    assert "They do not show that a method helps a real model" in remarks
    assert report["environment"]["machine"]


def test_a_further_matcher_is_asked_alone_and_changes_no_other_figure(
    out: Path, report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    monkeypatch.setattr(room, "describe", lambda *_: pytest.fail("a picture is described again"))
    before = {path: path.read_bytes() for path in folder.glob("verifiers/*/answers.parquet")}
    more = verified(folder, MATCHERS | {"ranker": ("ranker",)})
    assert {path: path.read_bytes() for path in before} == before
    (new,) = set(folder.glob("verifiers/*/answers.parquet")) - before.keys()
    assert new.parent.name.startswith("ranker-")
    assert {row["decoder"] for row in rows(new.parent)} == {"ranker"}
    old, new_rows = (
        [{k: v for k, v in row.items() if k != "p_holm"} for row in each["rows"] if "ranker" not in row["method"]]
        for each in (report, more)
    )
    assert new_rows == old


def test_answers_of_another_device_weights_or_version_are_refused(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    path = folder / "descriptions" / "asked.json"
    path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    with pytest.raises(DataError, match="other where than now"):
        verified(folder)
    path.write_text(path.read_text().replace('"device": "cuda"', '"device": "cpu"'))
    (path,) = folder.glob("verifiers/dual-prompt-*/asked.json")
    note = json.loads(path.read_text())
    path.write_text(json.dumps(note | {"matcher": "dual-prompt another commit"}))
    with pytest.raises(DataError, match="other matcher than now"):
        verified(folder)


def test_answers_of_other_code_that_describes_or_judges_are_refused(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in (out / "descriptions", *out.glob("verifiers/*")):
        note = json.loads((part / "asked.json").read_text())
        assert note["code"] == code_digest(adapters=bool(note["settings"]["matchers"]), beside=CODE)
    monkeypatch.setattr(lvlm_guard, "__file__", str(tmp_path / "__init__.py"))
    for name in ("verify/check.py", "evals/studies/verify/judges.py"):
        before = code_digest(), code_digest(beside=CODE)
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("changed")
        assert code_digest() == before[0]
        assert code_digest(beside=CODE) != before[1]


def interrupted(function: Callable[..., Any], after: int, asked: list[Any]) -> Callable[..., Any]:
    """The same function, which notes its last argument and is stopped by Ctrl-C once it was called so often."""
    calls: Iterator[int] = iter(range(10_000))

    def run(*arguments: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        asked.append(arguments[-1])
        return function(*arguments)

    return run


def test_a_run_that_was_stopped_twice_goes_on_asks_nothing_twice_and_ends_in_the_same_figures(
    report: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described: list[Any] = []
    plain_describe, plain_judge = room.describe, MatcherJudge.__call__
    monkeypatch.setattr(room, "describe", interrupted(plain_describe, 1, described))
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        room.verify_run(replace(SETTINGS, matchers=MATCHERS), tmp_path, echo=told.append, bar=False)
    assert "the same command goes on from there" in told[-1]
    assert len(shards(tmp_path)) == SETTINGS.batch
    assert not (tmp_path / "report.json").exists()

    judged: list[Any] = []
    monkeypatch.setattr(room, "describe", interrupted(plain_describe, 100, described))
    monkeypatch.setattr(MatcherJudge, "__call__", interrupted(plain_judge, 7, judged))
    with pytest.raises(KeyboardInterrupt):
        verified(tmp_path)
    monkeypatch.setattr(MatcherJudge, "__call__", interrupted(plain_judge, 1000, judged))
    again = verified(tmp_path)
    assert [row["method"] for row in again["rows"]] == [row["method"] for row in report["rows"]]
    for end in ("value", "low", "high"):  # a text's cosine depends on its batch in the eighth digit
        assert [row[end] for row in again["rows"]] == pytest.approx([row[end] for row in report["rows"]], abs=1e-6)
    assert [item.key for block in described for item in block] == [str(k) for k in range(12)]


def test_several_trainings_of_one_name_are_pooled_by_their_mean(
    report: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(ADAPTERS / "dual-prompt", other)
    weights = load_file(other / "adapter_model.safetensors")
    torch.manual_seed(0)
    noisy = {key: tensor + 0.3 * tensor.std() * torch.randn_like(tensor) for key, tensor in weights.items()}
    save_file(noisy, other / "adapter_model.safetensors", metadata={"format": "pt"})
    folder = tmp_path / "run"
    shutil.copytree(out, folder)
    alone = verified(folder, {"dual-prompt": (str(other),)})
    both = verified(folder, {"dual-prompt": ("dual-prompt", str(other))})
    first, second = value(report, "dual-prompt", "auroc"), value(alone, "dual-prompt", "auroc")
    assert first != second
    assert value(both, "dual-prompt", "auroc") == pytest.approx((first + second) / 2)
    assert len({one["version"] for one in both["matchers"]["dual-prompt"]}) == 2
    assert not any("one training each" in line for line in both["remarks"])


@pytest.mark.parametrize(
    ("tokens", "said"), [(2, "No description names an object"), (5, "All 1 mentions are .*, so there is nothing")]
)
def test_descriptions_that_name_nothing_or_nothing_wrong_are_told_so(tmp_path: Path, tokens: int, said: str) -> None:
    settings = Settings(tasks=("world_chair",), methods=(), limit=1, max_new_tokens=tokens)
    with pytest.raises(DataError, match=said):
        verified(tmp_path, {"blip-itm": ("blip-itm",)}, settings)


def test_a_task_without_captions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="world_pope is not one task of captions"):
        verified(tmp_path, settings=Settings(tasks=("world_pope",), limit=2))


def test_a_folder_with_another_runs_descriptions_is_refused(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(out, folder)
    with pytest.raises(GuardError, match="can't be mixed with these"):
        verified(folder, settings=Settings(tasks=("world_chair",), methods=(), limit=13, batch=5))


def test_a_baseline_that_compares_no_texts_is_refused() -> None:
    with pytest.raises(UnsupportedCallError, match="give the folder or hub id of a CLIP"):
        ClipJudge(load_matcher("embedded"), Vocabulary.of(NOUNS))


@pytest.mark.slow
def test_captions_of_cocos_pictures_are_verified_against_its_eighty_objects(tmp_path: Path) -> None:
    (world,) = tasks_of(SETTINGS)
    names = [f"COCO_val2014_{number:012d}.jpg" for number in range(1, 9)]
    truth: dict[str, Any] = {"categories": ["train", "cat", "couch", "clock", "suitcase", "airplane"], "images": {}}
    asked = []
    for name, item in zip(names, world.items, strict=False):
        item.pictures()[0].save(tmp_path / name, quality=95)
        known = [k for k, category in enumerate(truth["categories"]) if category in item.truth]
        truth["images"][str(chair.image_id(name))] = known
        asked.append({"image": name, "text": item.prompt})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    settings = Settings(
        tasks=("chair",),
        methods=(),
        batch=4,
        images=str(tmp_path),
        annotations=str(tmp_path / "truth.json"),
        questions=(str(tmp_path / "asked.jsonl"),),
    )
    found = verified(tmp_path / "out", {"clip": ("clip",)}, settings)
    captions = descriptions(tmp_path / "out")
    scored = chair.score(
        [{"image_id": row["item"], "caption": row["text"]} for row in captions],
        {key: [truth["categories"][k] for k in held] for key, held in truth["images"].items()},
    )
    assert found["counts"]["mentions"] == scored["object_words"] - scored["repeated_words"]
    assert found["counts"]["pictures"] == 8
    assert {row["task"] for row in found["rows"]} == {"chair"}
    assert not any("They do not show" in line for line in found["remarks"])
