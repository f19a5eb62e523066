"""The same pictures and captions as a file, a folder, shards and a Hugging Face data set read alike."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from lvlm_guard.adapters.data import Bad, open_facts
from lvlm_guard.adapters.errors import DataError
from lvlm_guard.errors import MissingExtraError

CAPTIONS = {"train/a.png": "a red cat", "train/b.png": "two cats", "validation/c.png": "a blue dog", "test/d.png": "a"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def picture(name: str) -> Image.Image:
    value = sum(map(ord, name)) % 200
    return Image.fromarray(np.full((6, 9, 3), value, np.uint8))


def png(name: str) -> bytes:
    out = io.BytesIO()
    picture(name).save(out, "PNG")
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def split_of(name: str) -> str:
    return {"validation": "val"}.get(name.partition("/")[0], name.partition("/")[0])


def as_file(root: Path) -> str:
    for name in CAPTIONS:
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_bytes(png(name))
    lines = [
        {"image": name, "captions": [text], "objects": {"cat": 1}, "split": split_of(name)}
        for name, text in CAPTIONS.items()
    ]
    (root / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(root / "facts.jsonl")


def as_folder(root: Path) -> str:
    as_file(root)
    (root / "facts.jsonl").unlink()
    for part in ("train", "validation", "test"):
        lines = [
            {"file_name": name.partition("/")[2], "captions": [text], "objects": {"cat": 1}}
            for name, text in CAPTIONS.items()
            if name.startswith(part)
        ]
        (root / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return str(root)


def as_shards(root: Path) -> str:
    for number, names in enumerate((list(CAPTIONS)[:2], list(CAPTIONS)[2:])):
        with tarfile.open(root / f"part-{number:03d}.tar", "w") as archive:
            for name in names:
                row = {"captions": [CAPTIONS[name]], "objects": {"cat": 1}, "split": split_of(name)}
                key = name.replace("/", "-")
                add(archive, key, png(name))
                add(archive, key.replace(".png", ".json"), json.dumps(row).encode())
    return str(root / "part-*.tar")


def as_dataset(root: Path) -> str:
    features = Features(
        {"image": ImageFeature(), "captions": List(Value("string")), "objects": {"cat": Value("int64")}}
    )
    parts = {}
    for part in ("train", "validation", "test"):
        names = [name for name in CAPTIONS if name.startswith(part)]
        rows = {
            "image": [{"bytes": png(name), "path": None} for name in names],
            "captions": [[CAPTIONS[name]] for name in names],
            "objects": [{"cat": 1} for _ in names],
        }
        parts[part] = Dataset.from_dict(rows, features=features)
    DatasetDict(parts).save_to_disk(str(root / "saved"))
    return str(root / "saved")


SOURCES = pytest.mark.parametrize("write", [as_file, as_folder, as_shards, as_dataset])


@SOURCES
def test_every_kind_of_source_gives_the_same_facts_and_pictures(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = open_facts(write(tmp_path))
    found = {row.caption: row for row in data.captions.rows}
    assert {text: row.split for text, row in found.items()} == {t: split_of(n) for n, t in CAPTIONS.items()}
    assert all(facts.objects == {"cat": 1} for facts in data.facts)
    store = pickle.loads(pickle.dumps(data.store))  # as worker processes have it
    for name, text in CAPTIONS.items():
        assert store.load(found[text].image).tobytes() == picture(name).tobytes()


@SOURCES
def test_a_damaged_picture_is_refused_or_skipped_and_counted_as_asked(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = write(tmp_path)
    whole = png("train/b.png")
    short = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    for path in tmp_path.rglob("*"):
        if path.is_file() and whole in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(whole, short))
    data = open_facts(source).captions
    bad = next(row.image for row in data.rows if row.caption == "two cats")
    with pytest.raises(DataError, match=r"on_bad=\"skip\""):
        data.load(bad)
    skipping = open_facts(source, on_bad="skip").captions
    found = skipping.load(bad)
    assert isinstance(found, Bad)
    left = skipping.without([found])
    assert {row.caption for row in left.rows} == set(CAPTIONS.values()) - {"two cats"}
    assert left.dropped["pictures that can't be read"] == 1
    with pytest.raises(DataError, match="none of its 4 pictures"):
        skipping.without([Bad(image, "gone") for image in skipping.images])


def test_captions_of_shards_may_be_lines_of_text(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for k in range(40):
            add(archive, f"{k}.png", png(str(k)))
            add(archive, f"{k}.txt", b"one\ntwo\n")
    rows = open_facts(tmp_path / "x.tar").captions.rows
    assert [row.caption for row in rows[:2]] == ["one", "two"]
    assert {row.split for row in rows} == {"train", "val", "test"}


def test_folders_of_an_image_folder_name_the_categories_of_their_captions(tmp_path: Path) -> None:
    for k in range(40):
        place = tmp_path / ("cats" if k % 2 else "dogs") / f"{k}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(str(k)))
    lines = [{"file_name": f"{'cats' if k % 2 else 'dogs'}/{k}.png", "captions": [f"number {k}"]} for k in range(40)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = open_facts(tmp_path).captions.rows
    assert len(rows) == 40
    assert {row.caption for row in rows} == {f"number {k}" for k in range(40)}


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    rows = {"img": [{"bytes": png("a"), "path": None}] * 2, "sentences": [["a cat", "one cat"]] * 2}
    parts = {name: Dataset.from_dict(rows).cast_column("img", ImageFeature()) for name in ("train", "validation")}
    DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    read = open_facts(tmp_path / "d", columns={"image": "img", "captions": "sentences"})
    assert [(row.caption, row.split) for row in read.captions.rows][-2:] == [("a cat", "val"), ("one cat", "val")]
    with pytest.raises(DataError, match="Columns: img, sentences"):
        open_facts(tmp_path / "d")
    with pytest.raises(DataError, match="Did you mean 'sentences'"):
        open_facts(tmp_path / "d", columns={"image": "img", "captions": "sentence"})


def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    as_shards(tmp_path)
    whole = (tmp_path / "part-000.tar").read_bytes()
    (tmp_path / "part-000.tar").write_bytes(whole[: whole.index(png("train/b.png")) + 10])
    with pytest.raises(DataError, match="can't be loaded"):
        open_facts(str(tmp_path / "part-000.tar"))


def test_without_the_library_a_data_set_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-guard\[train\]"):
        open_facts("hf:owner/name")


def test_a_source_that_is_nothing_and_arguments_it_would_not_use_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"adapters\.data --help"):
        open_facts(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="takes no such argument"):
        open_facts(as_file(tmp_path), columns={"image": "img"})
    with pytest.raises(DataError, match="can't be loaded"):
        open_facts(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")
