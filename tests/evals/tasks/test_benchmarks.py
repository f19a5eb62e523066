"""OPOPE, AMBER, DASH-B and MMHal-Bench as tasks: from their files to items, and what is refused."""

import gzip
import hashlib
import json
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import saved

from lvlm_guard.evals.errors import DataError
from lvlm_guard.evals.metrics import mmhal as judged
from lvlm_guard.evals.metrics import tokens
from lvlm_guard.evals.spec.items import EvalTask, Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.stats.results import find
from lvlm_guard.evals.stats.score import score
from lvlm_guard.evals.tasks import REGISTRY, tasks_of
from lvlm_guard.evals.tasks import amber as amber_files
from lvlm_guard.evals.tasks import mmhal as mmhal_files
from lvlm_guard.evals.tasks.benchmark import published

DATA = Path(__file__).parents[2] / "data"
AMBER = DATA / "benchmarks" / "amber"


def pictures(folder, names):
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 4)).save(folder / name, "JPEG")
    return str(folder)


def scored(folder, task, answers):
    saved(folder, task, answers)
    return json.loads((folder / "results.json").read_text())["rows"]


def test_opope_captions_popes_pictures_and_keeps_its_questions(tmp_path):
    for kind in ("random", "adversarial"):
        rows = [
            {"question_id": n, "image": f"{n // 2}.jpg", "text": f"Is there a {name} in the image?", "label": label}
            for n, (name, label) in enumerate([("dog", "yes"), ("cat", "no"), ("cup", "yes"), ("bus", "no")])
        ]
        (tmp_path / f"coco_pope_{kind}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = tuple(str(tmp_path / f"coco_pope_{kind}.json") for kind in ("random", "adversarial"))
    settings = Settings(tasks=("opope",), questions=files, images=pictures(tmp_path / "p", ["0.jpg", "1.jpg"]))
    (task,) = tasks_of(settings)
    assert task.kind == "opope"
    assert [item.picture for item in task.items] == ["0.jpg", "1.jpg"]
    assert task.items[0].truth == {k: [["dog", "yes"], ["cat", "no"]] for k in ("random", "adversarial")}
    rows = scored(tmp_path / "run", task, {"greedy": ["A puppy and a kitten.", "A cupcake."]})
    assert find(rows, "greedy", "opope", "precision_random")["value"] == 0.5
    assert find(rows, "greedy", "opope", "recall_random_official")["value"] == 0.5  # the cup in cupcake
    with pytest.raises(DataError, match="must not be chosen"):
        tasks_of(Settings(tasks=("opope",), split="val"))


@pytest.fixture
def amber_pictures(tmp_path):
    return pictures(tmp_path / "amber", [f"AMBER_{n}.jpg" for n in range(1, 1005)])


def test_amber_asks_all_questions_and_captions_all_pictures(amber_pictures, monkeypatch):
    def missing(what):
        raise DataError("no NLTK here")

    monkeypatch.setattr(tokens, "check", missing)
    settings = Settings(tasks=("amber", "amber_captions"), annotations=str(AMBER), images=amber_pictures)
    questions, captions = tasks_of(settings)
    assert (len(questions.items), len(captions.items)) == (14_216, 1_004)
    rows = Counter(row for item in questions.items for row in item.rows)
    assert rows["amber"] == 14_216
    assert (rows["amber_existence"], rows["amber_attribute"], rows["amber_relation"]) == (4924, 7628, 1664)
    assert rows["amber_state"] + rows["amber_number"] + rows["amber_action"] == rows["amber_attribute"]
    assert {item.truth for item in questions.items if "amber_existence" in item.rows} == {"no"}
    assert captions.items[0].prompt == "Describe this image."
    assert captions.items[0].truth["hallu"] == ["cloud", "sun", "bird", "dog", "flower"]
    assert "lexical" in captions.about["protocol"]
    assert "no NLTK here" in captions.about["warnings"][0]
    # questions about one picture stand together, and a limit keeps whole pictures
    (few,) = tasks_of(Settings(tasks=("amber",), annotations=str(AMBER), images=amber_pictures, limit=3))
    asked = [item.picture for item in few.items]
    assert len(set(asked)) == 3
    assert asked == sorted(asked, key=asked.index)


def test_ambers_published_score_is_offered_where_all_it_needs_is_there(tmp_path, amber_pictures, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("annotations.json.gz", "query_all.json.gz", "relation.json", "safe_words.txt"):
        (folder / name).write_bytes((AMBER / name).read_bytes())
    (folder / amber_files.TABLE).write_text('[["sky", "cloud", 0.9]]')
    monkeypatch.setattr(tokens, "check", lambda what: None)
    settings = Settings(tasks=("amber_captions",), annotations=str(folder), images=amber_pictures, limit=2)
    (task,) = tasks_of(settings)
    assert task.about["similarity"] == str(folder / amber_files.TABLE)
    assert task.about["warnings"] == []
    monkeypatch.setattr("lvlm_guard.evals.metrics.amber.nouns", lambda text: text.lower().strip(".").split())
    rows = scored(tmp_path / "run", task, {"greedy": ["Sky dog.", "Ship."]})
    assert find(rows, "greedy", "amber_captions", "amber_cog_official")["value"] == pytest.approx(1 / 10.001)
    assert find(rows, "greedy", "amber_captions", "amber_chair")["dialect"] == "lexical"
    (folder / "relation.json").unlink()
    with pytest.raises(DataError, match=r"holds no relation.json. Give the folder data"):
        amber_files.Amber(folder)


def test_ambers_fetched_files_are_those_of_the_pinned_commit():
    # the copies here have other white space: the digests of what is fetched are held against their content's
    files = published("amber").values()
    assert [len(file.sha256) for file in files] == [64] * 4
    assert all("534babf6bbfcce2e735c26289dedfb21cef3c939" in file.url for file in files)


ROWS = [
    {"question": f"Can you see a {name} in this image? Please answer only with yes or no.", "answer": answer}
    | {"question_id": n, "object": name}
    for n, (name, answer) in enumerate([("dam", "Yes"), ("violin", "No")])
]


def jpeg(shade):
    file = BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def test_dash_b_reads_the_hubs_tables_and_lines_with_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = [row | {"image": {"bytes": jpeg(n), "path": f"{n}.jpg"}} for n, row in enumerate(ROWS)]
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "hub" / "data" / "test-0.parquet")
    (task,) = tasks_of(Settings(tasks=("dash_b",), questions=(str(tmp_path / "hub"),)))
    assert [(item.truth, item.tags["object"]) for item in task.items] == [("yes", "dam"), ("no", "violin")]
    assert [item.images[0].read_bytes() for item in task.items] == [jpeg(0), jpeg(1)]
    assert task.items[0].pictures()[0].size == (4, 4)
    lines = tmp_path / "dash_b.jsonl"
    lines.write_text("".join(json.dumps(row | {"image": f"{n}.jpg"}) + "\n" for n, row in enumerate(ROWS)))
    images = pictures(tmp_path / "p", ["0.jpg", "1.jpg"])
    (other,) = tasks_of(Settings(tasks=("dash_b",), questions=(str(lines),), images=images))
    assert [(i.key, i.prompt, i.truth) for i in other.items] == [(i.key, i.prompt, i.truth) for i in task.items]
    rows = scored(tmp_path / "run", other, {"greedy": ["yes", "Yes."]})
    assert find(rows, "greedy", "dash_b", "harmonic_mean")["value"] == 0.0


def test_dash_b_says_what_is_wrong_with_its_files(tmp_path):
    with pytest.raises(DataError, match="download the data set YanNeu/DASH-B"):
        tasks_of(Settings(tasks=("dash_b",)))
    lines = tmp_path / "dash_b.jsonl"
    lines.write_text(json.dumps(ROWS[0] | {"image": "0.jpg", "answer": "maybe"}) + "\n")
    with pytest.raises(DataError, match=r"Line 1 of .* has the answer 'maybe'"):
        tasks_of(Settings(tasks=("dash_b",), questions=(str(lines),)))
    lines.write_text(2 * (json.dumps(ROWS[0] | {"image": "0.jpg"}) + "\n"))
    with pytest.raises(DataError, match="question_id 0 a second time"):
        tasks_of(Settings(tasks=("dash_b",), questions=(str(lines),)))
    pq.write_table(pa.Table.from_pylist([ROWS[0] | {"image": {"bytes": b"no", "path": ""}}]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Question 0 of DASH-B has no picture"):
        tasks_of(Settings(tasks=("dash_b",), questions=(str(tmp_path / "a.parquet"),)))


def template(path):
    rows = [
        {
            "question_type": judged.TYPES[n % 8],
            "question_topic": "food",
            "image_id": str(n),
            "image_src": f"https://c1.staticflickr.com/1/{n}_o.jpg",
            "image_content": ["Cup", "Table"],
            "question": f"What is {n}?",
            "gt_answer": "A cup.",
            "model_answer": "",
        }
        for n in range(96)
    ]
    path.write_text(json.dumps(rows))
    return rows


def test_mmhal_is_asked_judged_elsewhere_and_scored_by_the_replies_in_its_folder(tmp_path):
    template(tmp_path / "response_template.json")
    images = pictures(tmp_path / "p", [f"{n}_o.jpg" for n in range(96)])
    settings = Settings(tasks=("mmhal",), questions=(str(tmp_path / "response_template.json"),), images=images)
    (task,) = tasks_of(settings)
    answers = {"greedy": [f"answer {n}" for n in range(96)], "other": ["no idea"] * 96}
    rows = scored(tmp_path / "run", task, answers)
    assert find(rows, "greedy", "mmhal", "score")["value"] is None
    prompt = "{image_content} {question} {gt_answer} {model_answer}"
    written = mmhal_files.write_requests(tmp_path / "run", prompt)
    assert len(written) == 2
    golden = json.loads((DATA / "benchmarks" / "mmhal_verdicts.json").read_text())
    (tmp_path / "run" / "verdicts").mkdir()
    for path in written:  # whoever has a judge answers these
        asked = [json.loads(line) for line in path.read_text().split("\n") if line]
        assert asked[3]["body"]["messages"][0]["content"].startswith("Cup, Table What is 3? A cup.")
        reply = {name: asked[0][name] for name in ("prompt_sha256", "answers_sha256")}
        assert reply["prompt_sha256"] == hashlib.sha256(prompt.encode()).hexdigest()
        reply |= {"judge": {"model": "judge-1", "date": "2026-11-29"}, "verdicts": golden["verdicts"]}
        (tmp_path / "run" / "verdicts" / f"{path.stem}.json").write_text(json.dumps(reply))
    results = score(tmp_path / "run")
    found = find(results["rows"], "greedy", "mmhal", "score_official")
    assert found["value"] == pytest.approx(golden["average"])
    assert find(results["rows"], "other", "mmhal", "score_official", "greedy")["value"] == 0.0
    assert any("judged by judge-1 on 2026-11-29" in warning for warning in results["warnings"])


def test_a_judges_prompt_is_filled_in_one_pass_and_must_have_room_for_everything(tmp_path):
    rows = template(tmp_path / "t.json")
    items = [
        Item(str(n), f"{n}", "?", (), rows=("mmhal",), tags=row | {"question": f"{n} {{gt_answer}}?"})
        for n, row in enumerate(rows)
    ]
    saved(tmp_path / "run", EvalTask("mmhal", "mmhal", items, 9), {"greedy": [f"answer {n}" for n in range(96)]})
    prompt = "Contents: {image_content}. Q: {question} Human: {gt_answer} Model: {model_answer} {not a field}"
    (written,) = mmhal_files.write_requests(tmp_path / "run", prompt)
    asked = [json.loads(line) for line in written.read_text().split("\n") if line]
    assert asked[7]["body"]["messages"][0]["content"] == (
        "Contents: Cup, Table. Q: 7 {gt_answer}? Human: A cup. Model: answer 7 {not a field}"
    )
    with pytest.raises(DataError, match=r"has no place for \{question\}, \{gt_answer\}"):
        mmhal_files.write_requests(tmp_path / "run", "{image_content} {model_answer}")


def test_another_order_or_part_of_mmhal_is_refused(tmp_path):
    rows = template(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps(rows[1:] + rows[:1]))
    with pytest.raises(DataError, match=r"Question 1 of .* is of the type 'adversarial'"):
        mmhal_files.template(tmp_path / "t.json")
    (tmp_path / "t.json").write_text(json.dumps(rows[:95]))
    with pytest.raises(DataError, match="has 95 questions"):
        mmhal_files.template(tmp_path / "t.json")
    with pytest.raises(DataError, match="leave out --limit"):
        tasks_of(Settings(tasks=("mmhal",), limit=3))


def test_no_data_of_benchmarks_without_a_licence_is_in_the_room():
    room = Path(__file__).parents[3] / "evals"
    names = [path.name.lower() for path in room.rglob("*") if path.suffix in (".json", ".jsonl", ".gz", ".parquet")]
    assert not [
        name for name in names if any(word in name for word in ("repope", "dash", "amber", "relation", "mmhal"))
    ]
    assert {"opope", "amber", "amber_captions", "dash_b", "mmhal"} <= set(REGISTRY.names())
    assert gzip.decompress((AMBER / "annotations.json.gz").read_bytes())[:1] == b"["
