"""What judges do with what is unusual: sentences beyond a CLIP's length, a CLIP without calibration, maps alone."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from matchers import Brightness
from PIL import Image

from lvlm_guard.adapters.loading import TINY
from lvlm_guard.errors import TextError, UnsupportedCallError
from lvlm_guard.evals.spec.items import Item
from lvlm_guard.evals.spec.settings import Settings
from lvlm_guard.evals.studies.verify import verify_run
from lvlm_guard.evals.studies.verify.judges import SENTENCE, ClipJudge, MatcherJudge
from lvlm_guard.matching import Match, Matcher, Vocabulary, load_matcher

OBJECTS = Vocabulary.of(("dog", "cat", "bus", "train"))
IMAGE = Image.new("RGB", (96, 96), "orange")


def mention(name: str, sentence: str) -> Item:
    return Item(name, "0", sentence, (IMAGE,), question=name, truth="yes", tags={"probability": 0.5})


def test_a_sentence_beyond_the_clips_length_is_cut_and_still_scored() -> None:
    clip = load_matcher("embedded-clip")
    long = "a dog , " * 60
    with pytest.raises(TextError):
        clip.similarity([IMAGE], [long])
    short = mention("cat", "a cat .")
    columns = ClipJudge(clip, OBJECTS)(IMAGE, [mention("dog", long), short])
    scores = [one.score for one in columns[SENTENCE]]
    assert scores[0] is not None
    assert -1 <= scores[0] <= 1
    assert scores[1] == pytest.approx(float(clip.similarity([IMAGE], ["a cat ."])[0, 0]), abs=1e-5)


class Maps(Brightness):
    """Gives maps alone."""

    support = Matcher.support


class Comparing(Brightness):
    """Compares texts, and has no probability of its own."""

    support = Matcher.support

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[0.3 if "dog" in text else 0.28 for text in texts] for _ in images])

    def __call__(self, images: Sequence[Image.Image], texts: Sequence[str]) -> list[Match]:
        raise AssertionError("maps are not needed")


def test_a_matcher_that_gives_maps_alone_is_refused() -> None:
    with pytest.raises(UnsupportedCallError, match="no probabilities"):
        MatcherJudge(Maps(), OBJECTS)


def test_a_matcher_that_only_compares_gives_verdicts_by_swaps_and_no_score_of_its_own() -> None:
    columns = MatcherJudge(Comparing(), OBJECTS)(IMAGE, [mention("dog", "a dog"), mention("bus", "a bus")])
    assert set(columns) == {""}
    # two objects that are not named, cat and train, stand against each; tau is .01
    words, numbers = zip(*(one.text.split() for one in columns[""]), strict=True)
    assert [float(number) for number in numbers] == pytest.approx([math.exp(2) / (math.exp(2) + 2), 1 / 3], abs=1e-6)
    assert words == ("yes", "no")


@pytest.mark.slow
def test_a_clip_without_calibration_has_the_same_auroc_and_the_report_says_what_is_missing(tmp_path: Path) -> None:
    settings = Settings(tasks=("world_chair",), methods=(), limit=10, batch=10, matchers={"blip-itm": ("blip-itm",)})

    def rows(clip: str) -> tuple[dict[str, dict[str, float]], list[str]]:
        report = verify_run(settings, tmp_path, clip, echo=lambda _: None, bar=False)
        own = [row for row in report["rows"] if (row["decoder"], row["baseline"]) == ("calibrated-clip", None)]
        return {row["metric"]: row for row in own}, report["remarks"]

    calibrated, told = rows("clip")
    plain, told_plain = rows(str(TINY))
    assert plain["auroc"]["value"] == pytest.approx(calibrated["auroc"]["value"])
    assert set(plain) == {"auroc", "accuracy_matched"}
    assert any("is not calibrated" in line for line in told_plain)
    assert not any("is not calibrated" in line for line in told)
