import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lvlm_guard import methods
from lvlm_guard.bench.clock import clocked
from lvlm_guard.bench.measure import Arm, Bench, arms_of, stamped, turning
from lvlm_guard.bench.workloads import folder_pictures, made_pictures, picture_workloads, world_workloads
from lvlm_guard.errors import ImageError, KnobError
from lvlm_guard.pretrained import load_model

AGLA = methods.AGLA()
ARMS = [Arm("greedy"), Arm("agla", "lazy", AGLA), Arm("agla", "batched", AGLA), Arm("vcd", "auto", methods.VCD())]


def test_every_arm_runs_once_a_call_and_stands_at_every_place_equally_often() -> None:
    places: Counter[tuple[Arm, int]] = Counter()
    for order in turning(ARMS, 8 * len(ARMS)):
        assert set(order) == set(ARMS)
        places.update((arm, place) for place, arm in enumerate(order))
    assert set(places.values()) == {8}


def test_each_call_turns_the_order_of_the_one_before() -> None:
    orders = [list(order) for order in turning(ARMS[:2], 4)]
    assert orders[0] == orders[1][::-1]
    assert orders[2] == orders[3][::-1]


def test_a_stamp_changes_the_content_and_not_the_sight() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8))
    stamps = [stamped(picture, number) for number in range(3000)]
    assert len({image.tobytes() for image in stamps}) == 3000
    for image in stamps[::500]:
        change = np.abs(np.asarray(image).astype(int) - np.asarray(picture))
        assert change.max() <= 3
        assert (change.any(-1)).sum() <= 4
    assert stamped(Image.new("L", (1, 1)), 1).size == (1, 1)


def test_a_method_is_measured_only_in_the_ways_that_it_can_run() -> None:
    arms = arms_of([methods.AGLA(), methods.APC(), methods.Vote()], ["auto", "lazy", "batched"])
    assert [(arm.name, arm.execution) for arm in arms] == [
        ("greedy", "auto"),
        ("agla", "auto"),
        ("agla", "lazy"),
        ("agla", "batched"),
        ("apc", "auto"),
        ("vote", "auto"),
    ]
    with pytest.raises(KnobError, match="'auto', 'lazy' or 'batched'"):
        arms_of([methods.AGLA()], ["fast"])  # type: ignore[list-item]


def test_the_worlds_questions_are_popes_in_equal_parts_each_of_another_scene() -> None:
    *captions, questions = world_workloads(6, [1, 8])
    assert [(c.task, c.batch) for c in captions] == [("caption", 1), ("caption", 8)]
    calls = range(6 * questions.calls)
    pictures = [questions.pictures(call)[0].tobytes() for call in calls]
    assert len(set(pictures)) == len(pictures)
    assert all(questions.prompts(call)[0].startswith("is there a") for call in calls)
    for caption in captions:
        assert len(caption.pictures(3)) == len(caption.prompts(3)) == caption.batch
    seen = [p.tobytes() for call in range(6) for p in captions[1].pictures(call)]
    assert len(set(seen)) == 48


def test_a_folder_gives_its_pictures_and_nothing_else(tmp_path: Any) -> None:
    with pytest.raises(ImageError, match="no folder"):
        folder_pictures(tmp_path / "none")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(ImageError, match="no picture"):
        picture_workloads(folder_pictures(tmp_path))
    for size in ((30, 20), (20, 30)):
        Image.new("CMYK", size).save(tmp_path / f"{size[0]}.tiff")
    pictures = folder_pictures(tmp_path)
    assert [picture.size for picture in pictures] == [(20, 30), (30, 20)]
    workload = picture_workloads(pictures, [3])[0]
    assert [p.size for p in workload.pictures(1)] == [(30, 20), (20, 30), (30, 20)]
    assert made_pictures(2)[0].size == (336, 336)


def test_the_peak_of_memory_sees_what_was_held_and_let_go() -> None:
    # in a process of its own: here other tests' leftovers may be freed meanwhile
    code = (
        "import numpy as np, torch; from lvlm_guard.bench.memory import peak_meter\n"
        "big = np.ones(300 * 2**20, np.uint8); del big\n"
        "read = peak_meter(torch.device('cpu')); before = read()\n"
        "block = np.ones(80 * 2**20, np.uint8); del block\n"
        "print(read() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(80, abs=10)


@pytest.fixture(scope="module")
def measured() -> tuple[Bench, list[dict[str, Any]]]:
    model, processor = load_model()
    bench = Bench(model, processor, "embedded", blocks=2)
    workloads = [replace(workload, calls=min(workload.calls, 6)) for workload in world_workloads(2, [2])]
    return bench, bench.run(workloads, arms_of([AGLA, methods.Vote()], ["auto", "batched"]))


def test_rows_have_the_long_form_and_say_what_they_are(measured: tuple[Bench, list[dict[str, Any]]]) -> None:
    _, rows = measured
    keys = {"model", "method", "task", "metric", "value", "low", "high", "n", "batch", "execution"}
    assert all(set(row) == keys for row in rows)
    assert len({(r["method"], r["task"], r["batch"], r["execution"], r["metric"]) for r in rows}) == len(rows)
    metrics = {row["metric"] for row in rows if row["method"] == "agla"}
    assert metrics >= {
        "time_ratio", "token_time_ratio", "tokens_per_s", "local_forwards", "global_forwards", "masks",
        "peak_memory_mib", "local_tokens",
    }  # fmt: skip
    assert not [row for row in rows if row["method"] == "greedy" and row["metric"] == "time_ratio"]
    found = {(row["method"], row["execution"], row["task"], row["metric"]): row["value"] for row in rows}
    ratio, plain, guarded = (
        found[key]
        for key in (
            ("agla", "auto", "caption", "token_time_ratio"),
            ("greedy", "plain", "caption", "tokens_per_s"),
            ("agla", "auto", "caption", "tokens_per_s"),
        )
    )
    assert ratio == pytest.approx(plain / guarded, rel=0.2)  # medians of two blocks
    for row in rows:
        assert row["value"] >= 0
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]


def test_counts_are_those_of_the_traces(measured: tuple[Bench, list[dict[str, Any]]]) -> None:
    _, rows = measured
    found = {(r["task"], r["method"], r["execution"], r["metric"]): r["value"] for r in rows}
    # batched AGLA makes a mask for every picture of every call, lazy AGLA only where it matters
    assert found["question", "agla", "batched", "masks"] == 1
    assert found["caption", "agla", "batched", "masks"] == 2
    assert found["question", "agla", "auto", "masks"] < 0.8
    assert found["question", "agla", "auto", "local_forwards"] <= found["question", "agla", "auto", "global_forwards"]
    assert found["question", "vote", "auto", "local_forwards"] == 0


def test_where_the_time_goes_is_told_by_shares_of_a_call(measured: tuple[Bench, list[dict[str, Any]]]) -> None:
    _, rows = measured
    share = {
        (r["task"], r["method"], r["execution"], r["metric"].removesuffix("_share")): r["value"]
        for r in rows
        if r["metric"].endswith("_share")
    }
    arms = {key[:3] for key in share}
    assert len(arms) == 6
    for arm in arms:
        assert 0 < share[*arm, "matcher"] + share[*arm, "reading"] < 1
    # every batched call pays for a mask and a second reading, few lazy ones of questions do
    for part in ("matcher", "reading"):
        assert share["question", "agla", "batched", part] > share["question", "agla", "auto", part]
    assert share["caption", "vote", "auto", "reading"] == 0 < share["caption", "vote", "auto", "matcher"]


class _Base:
    def asked(self, of: int) -> int:
        return self.all(of) + 1

    def all(self, of: int) -> int:
        _Base.time += of
        return of

    time = 0.0


class _Own(_Base):
    def all(self, of: int) -> int:
        if of < 0:
            raise ValueError("below 0")
        return super().all(of)


def test_a_clock_adds_outermost_calls_and_leaves_the_class_as_it_was() -> None:
    before = dict(vars(_Own))
    with clocked(_Own, ("asked", "all", "absent"), lambda: _Base.time) as clock:
        assert _Own().asked(3) == 4  # which calls the other
        assert _Own().all(2) == 2
        with pytest.raises(ValueError, match="below"):
            _Own().all(-1)
        assert _Base().all(5) == 5  # another class's
        assert _Own().all(1) == 1
    assert clock.seconds == 6
    assert dict(vars(_Own)) == before
    _Own().all(9)
    assert clock.seconds == 6


def test_each_arm_has_a_pair_of_its_own_that_shares_the_weights_and_the_plain_one_stays_plain(
    measured: tuple[Bench, list[dict[str, Any]]],
) -> None:
    bench, _ = measured
    plain, _ = bench._pair(Arm("greedy"))
    assert plain is bench.model
    assert type(plain).__name__ == "LlavaForConditionalGeneration"
    assert "_lvlm_guard" not in vars(plain)
    pairs = [bench._pair(arm) for arm in arms_of([AGLA, methods.Vote()], ["auto", "batched"])[1:]]
    assert len({id(model) for model, _ in pairs}) == 3
    assert all(model.lm_head.weight is plain.lm_head.weight for model, _ in pairs)
    assert all("_lvlm_guard" in vars(model) for model, _ in pairs)


def test_each_timed_call_sees_a_new_picture(measured: tuple[Bench, list[dict[str, Any]]]) -> None:
    bench, _ = measured
    workload = world_workloads(1, [1])[0]
    seen: list[bytes] = []
    inner = bench._inputs

    def spy(processor: Any, pictures: list[Image.Image], prompts: list[str]) -> Any:
        seen.extend(picture.tobytes() for picture in pictures)
        return inner(processor, pictures, prompts)

    bench._inputs = spy  # type: ignore[method-assign]
    try:
        for arm, call in itertools.product(arms_of([AGLA], ["auto", "lazy"]), range(2)):
            bench._call(workload, arm, call)
            bench._call(workload, arm, call)
    finally:
        del bench._inputs  # type: ignore[method-assign]
    assert len(set(seen)) == len(seen) == 12
