"""The same pictures and captions as a file, a folder, shards and a Hugging Face data set read alike."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from torch.utils.data import DataLoader

from lvlm_guard.adapters.clip.build import processor as clip_processor
from lvlm_guard.adapters.data import Bad, CaptionData, open_captions, open_ranks, sift
from lvlm_guard.adapters.data.errors import DataError
from lvlm_guard.errors import MissingExtraError

CAPTIONS = {"cats/a.png": "a red cat", "cats/b.png": "two cats", "dogs/c.png": "a blue dog"}


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


def as_folder(root: Path) -> str:
    for name, caption in CAPTIONS.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(png(name))
        (root / name).with_suffix(".txt").write_text(caption + "\n")
    return str(root)


def as_file(root: Path) -> str:
    as_folder(root)
    rows = [{"image": name, "caption": text, "category": name.partition("/")[0]} for name, text in CAPTIONS.items()]
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(root / "captions.jsonl")


def as_shards(root: Path) -> str:
    for number, names in enumerate((list(CAPTIONS)[:2], list(CAPTIONS)[2:])):
        with tarfile.open(root / f"part-{number:03d}.tar", "w") as archive:
            for name in names:
                row = {"caption": CAPTIONS[name], "category": name.partition("/")[0]}
                add(archive, name, png(name))
                add(archive, name.replace(".png", ".json"), json.dumps(row).encode())
    return str(root / "part-{000..001}.tar")


def as_dataset(root: Path) -> str:
    rows = {
        "image": [{"bytes": png(name), "path": None} for name in CAPTIONS],
        "caption": list(CAPTIONS.values()),
        "category": [name.partition("/")[0] for name in CAPTIONS],
    }
    features = Features({"image": ImageFeature(), "caption": Value("string"), "category": Value("string")})
    Dataset.from_dict(rows, features=features).save_to_disk(str(root / "saved"))
    return str(root / "saved")


@pytest.mark.parametrize("write", [as_folder, as_file, as_shards, as_dataset])
def test_every_kind_of_source_gives_the_same_captions_and_pictures(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = open_captions(write(tmp_path))
    assert [row.caption for row in data.rows] == list(CAPTIONS.values())
    assert [row.category for row in data.rows] == ["cats", "cats", "dogs"]
    for k, name in enumerate(CAPTIONS):
        item = data[k]
        assert not isinstance(item, Bad)
        assert item.picture.tobytes() == picture(name).tobytes()


@pytest.mark.parametrize("write", [as_folder, as_file, as_shards, as_dataset])
def test_every_kind_of_source_can_be_read_by_worker_processes(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = open_captions(write(tmp_path))
    loader = DataLoader(data, batch_size=1, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    assert [item.row.caption for batch in loader for item in batch] == list(CAPTIONS.values())


def damaged(write, root: Path) -> str:  # type: ignore[no-untyped-def]
    """Write the source with the second picture cut short."""
    source: str = write(root)
    whole = png("cats/b.png")
    short = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    for path in root.rglob("*"):
        if path.is_file() and whole in path.read_bytes():
            path.write_bytes(path.read_bytes().replace(whole, short))
    return source


@pytest.mark.parametrize("write", [as_folder, as_file, as_shards, as_dataset])
def test_a_damaged_picture_is_refused_or_skipped_and_counted_as_asked(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    source = damaged(write, tmp_path)
    with pytest.raises(DataError, match=r"on_bad=\"skip\""):
        list(DataLoader(open_captions(source), batch_size=3, collate_fn=list))
    data = open_captions(source, on_bad="skip")
    kept, bad = sift(data[k] for k in range(len(data)))
    assert [item.row.caption for item in kept] == ["a red cat", "a blue dog"]
    assert [item.image for item in bad] == [data.rows[1].image]
    left = data.without(bad)
    assert len(left) == 2
    assert left.dropped["pictures that can't be read"] == 1


def test_a_missing_picture_is_treated_as_a_damaged_one(tmp_path: Path) -> None:
    source = as_file(tmp_path)
    (tmp_path / "cats/b.png").unlink()
    with pytest.raises(DataError, match=r"cats/b\.png"):
        open_captions(source)[1]
    assert isinstance(open_captions(source, on_bad="skip")[1], Bad)


def test_a_data_set_of_which_no_picture_can_be_read_is_refused_also_when_skipping(tmp_path: Path) -> None:
    data = open_captions(as_file(tmp_path), on_bad="skip")
    with pytest.raises(DataError, match="none of its 3 pictures"):
        data.without([Bad(image, "gone") for image in data.images])


def test_a_shard_that_is_cut_short_compressed_or_missing_is_refused(tmp_path: Path) -> None:
    as_shards(tmp_path)
    whole = (tmp_path / "part-000.tar").read_bytes()
    place = whole.index(png("cats/b.png"))
    (tmp_path / "part-000.tar").write_bytes(whole[: place + 10])
    with pytest.raises(DataError, match="cut short"):
        open_captions(str(tmp_path / "*.tar"))
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        add(archive, "a.png", png("a"))
    with pytest.raises(DataError, match="compressed"):
        open_captions(str(tmp_path / "packed.tar"))
    with pytest.raises(DataError, match=r"part-002\.tar"):
        open_captions(str(tmp_path / "part-{000..002}.tar"))


def test_samples_without_a_picture_are_refused_or_counted_as_asked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a.png", png("a"))
        add(archive, "a.txt", b"one\ntwo\n")
        add(archive, "b.txt", b"no picture")
    with pytest.raises(DataError, match="the sample 'b' has txt"):
        open_captions(tmp_path / "x.tar")
    data = open_captions(tmp_path / "x.tar", on_bad="skip")
    assert [row.caption for row in data.rows] == ["one", "two"]
    assert data.dropped["samples without a picture or a text"] == 1


def test_values_are_read_from_shards_and_from_folders_named_by_them(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add(archive, "a.png", png("a"))
        add(archive, "a.json", b'[{"object": "dog", "value": 2}, {"object": "cat", "value": 0}]')
    ranks = open_ranks(tmp_path / "x.tar", exhaustive=["dog"])
    assert [(row.object, row.value) for row in ranks.rows] == [("dog", 2), ("cat", 0)]
    (tmp_path / "ages" / "12.5").mkdir(parents=True)
    (tmp_path / "ages" / "12.5" / "a.png").write_bytes(png("a"))
    ages = open_ranks(tmp_path / "ages", object="age", template="Rank the age of the person.")
    assert ages.rows[0].value == 12.5
    assert ages.instruction("age") == "Rank the age of the person."
    (tmp_path / "ages" / "old").mkdir()
    (tmp_path / "ages" / "old" / "b.png").write_bytes(png("a"))
    with pytest.raises(DataError, match="old"):
        open_ranks(tmp_path / "ages", object="age")


def test_columns_of_other_names_are_mapped_and_lists_of_captions_are_rows(tmp_path: Path) -> None:
    rows = {"img": [{"bytes": png("a"), "path": None}], "sentences": [["a cat", "one cat"]]}
    data = Dataset.from_dict(rows).cast_column("img", ImageFeature())
    DatasetDict({"validation": data}).save_to_disk(str(tmp_path / "d"))
    read = open_captions(tmp_path / "d", columns={"image": "img", "caption": "sentences"})
    assert [(row.caption, row.split) for row in read.rows] == [("a cat", "val"), ("one cat", "val")]
    assert len(read.images) == 1
    with pytest.raises(DataError, match="Columns: img, sentences"):
        open_captions(tmp_path / "d")
    with pytest.raises(DataError, match="Did you mean 'sentences'"):
        open_captions(tmp_path / "d", columns={"image": "img", "caption": "sentence"})


def test_without_the_library_a_data_set_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"lvlm-guard\[train\]"):
        open_captions("hf:owner/name")


def test_a_source_that_is_nothing_and_arguments_it_would_not_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is nothing called"):
        open_captions(tmp_path / "none")
    (tmp_path / "rows.csv").write_text("image,caption\n")
    with pytest.raises(DataError, match=r"adapters\.data --help"):
        open_captions(tmp_path / "rows.csv")
    with pytest.raises(DataError, match="does not take `columns`"):
        open_captions(as_file(tmp_path), columns={"image": "img"})
    with pytest.raises(DataError, match="no picture"):
        open_captions(tmp_path.joinpath("empty").mkdir() or tmp_path / "empty")


def test_the_validation_part_is_cut_by_picture_and_moves_none_when_pictures_join(tmp_path: Path) -> None:
    data = open_captions(as_file(tmp_path))
    rows = [data.rows[0].__class__(f"{k % 40}.png", f"caption {k}") for k in range(80)]
    small, large = CaptionData(rows, data.store, "small"), CaptionData([*rows, *more(rows)], data.store, "large")
    train, held = small.parted(0.25, seed=3)
    assert not set(train.images) & set(held.images)
    assert len(train) + len(held) == 80
    assert set(held.images) == set(large.parted(0.25, seed=3)[1].images) & set(small.images)
    assert set(held.images) != set(small.parted(0.25, seed=4)[1].images)
    with pytest.raises(DataError, match="too few"):
        data.with_rows(data.rows[:1]).parted(0.1)


def test_the_summary_measures_the_longest_caption_in_the_backbones_tokens(tmp_path: Path) -> None:
    tokens = clip_processor().tokenizer
    data = open_captions(as_file(tmp_path))
    long = replace(data.rows[0], caption="a cat and " * 40 + "a dog", category="once")
    summary = data.with_rows([*data.rows, long]).summary(tokens)
    assert summary.longest == long.caption
    assert summary.tokens == len(tokens(long.caption)["input_ids"]) == 124
    assert summary.over == 1
    assert summary.lonely == ("dogs", "once")
    assert "1 are over the limit" in str(summary)
    assert data.summary().tokens is None


def more(rows: list) -> list:  # type: ignore[type-arg]
    return [rows[0].__class__(f"new{k}.png", "new") for k in range(40)]
