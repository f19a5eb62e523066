import os
import subprocess
import sys
import textwrap

import pytest
import torch
from blips import MEAN, STD, blip_model, blip_tokenizer
from matchers import Brightness
from PIL import Image
from transformers import BlipImageProcessor, BlipProcessor, LlamaConfig, LlamaForCausalLM

from lvlm_guard.errors import KnobError, UnknownNameError, UnsupportedCallError
from lvlm_guard.matching import REGISTRY, BlipITM, Matcher, load_matcher
from lvlm_guard.matching.loading import LARGE, default_source


@pytest.fixture
def folder(tmp_path):
    blip_model().save_pretrained(tmp_path / "matcher")
    pixels = BlipImageProcessor(size={"height": 32, "width": 32}, image_mean=list(MEAN), image_std=list(STD))
    BlipProcessor(pixels, blip_tokenizer()).save_pretrained(tmp_path / "matcher")
    return tmp_path / "matcher"


def guarded_model(tmp_path, **told):
    config = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config.lvlm_guard = told
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return LlamaForCausalLM.from_pretrained(tmp_path / "model")


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_folder_is_loaded_once_however_it_is_named(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    one = load_matcher(folder)
    assert isinstance(one, BlipITM)
    assert load_matcher(str(folder)) is one
    assert load_matcher("matcher") is one
    assert load_matcher(folder, dtype=torch.bfloat16) is not one


def test_a_registered_matcher_goes_where_its_model_has_gone(monkeypatch):
    class Model:
        device = torch.device("cpu")

    class Placed(Brightness):
        @classmethod
        def load(cls, model=None):
            made = cls()
            made.place = model.device
            return made

    monkeypatch.setattr(type(REGISTRY), "get", lambda self, name: Placed)
    model = Model()
    here = load_matcher("blip-itm", model=model)
    assert load_matcher("blip-itm", model=model) is here
    model.device = torch.device("cuda")
    there = load_matcher("blip-itm", model=model)
    assert (here.place.type, there.place.type) == ("cpu", "cuda")
    assert load_matcher("blip-itm", model=model) is there


def test_a_matcher_is_its_own_specification():
    mine = Brightness()
    assert load_matcher(mine) is mine


def test_the_models_config_may_name_the_folder_beside_it(folder, tmp_path):
    model = guarded_model(tmp_path, matcher="../matcher")
    assert load_matcher(None, model=model) is load_matcher("blip-itm", model=model) is load_matcher(folder)


def test_a_copy_of_the_embedded_model_saved_elsewhere_keeps_the_embedded_matcher(tmp_path):
    from lvlm_guard.embedded import MATCHER

    assert default_source(guarded_model(tmp_path, matcher="../blip")) == str(MATCHER)


def test_other_models_and_no_model_get_the_matcher_of_the_paper(tmp_path):
    assert default_source(None) == default_source(guarded_model(tmp_path)) == LARGE == "Salesforce/blip-itm-large-coco"


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(UnknownNameError, match="blip-itm"):
        load_matcher("blip-ittm")


def test_what_names_no_matcher_is_refused():
    with pytest.raises(KnobError, match="subclass"):
        load_matcher(3)


def test_a_matcher_without_probabilities_says_so():
    class MapsOnly(Brightness):
        support = Matcher.support

    with pytest.raises(UnsupportedCallError, match="support"):
        MapsOnly().support(Image.new("RGB", (4, 4)), ["a dog"])
    with pytest.raises(UnsupportedCallError, match="support"):
        MapsOnly().require_support()
    Brightness().require_support()


def test_offline_the_default_weights_are_an_error_that_says_how_to_fetch_them(tmp_path):
    said = run(
        """
        from lvlm_guard.errors import WeightsError
        from lvlm_guard.matching import load_matcher
        try:
            load_matcher()
        except WeightsError as error:
            print(error)
        """,
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path),
    )
    assert "hf download Salesforce/blip-itm-large-coco" in said
    assert "matcher='DIR'" in said


def test_names_vocabulary_finder_and_log_odds_load_without_torch_or_scipy():
    run(
        """
        import sys
        from lvlm_guard.matching import REGISTRY, ClaimFinder, Vocabulary
        from lvlm_guard.matching.platt import log_odds
        assert "blip-itm" in REGISTRY.names() and len(Vocabulary.of(None).names) == 80
        assert not {"torch", "transformers", "scipy"} & set(sys.modules)
        """
    )


def test_another_package_brings_a_matcher_by_entry_point(tmp_path):
    (tmp_path / "halves.py").write_text(
        textwrap.dedent(
            """
            import torch
            from lvlm_guard.matching import Match, Matcher

            class Halves(Matcher):
                version = "halves-1"

                def __call__(self, images, texts):
                    relevance = torch.zeros(8, 8)
                    relevance[:, :5] = 1
                    return [Match(relevance, 1.0) for _ in images]
            """
        )
    )
    meta = tmp_path / "halves-0.1.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 0.1\n")
    (meta / "entry_points.txt").write_text("[lvlm_guard.matchers]\nhalves = halves:Halves\n")
    said = run(
        """
        from PIL import Image
        from lvlm_guard.matching import REGISTRY, load_matcher, local_view
        matcher = load_matcher("halves")
        assert load_matcher("halves") is matcher
        white = Image.new("RGB", (40, 20), "white")
        view = local_view(white, matcher([white], ["dog"])[0], "original")
        print(REGISTRY.names(), view.getpixel((5, 5)), view.getpixel((35, 5)))
        """,
        PYTHONPATH=str(tmp_path),
    )
    assert said.split("]")[0].endswith("'halves'")
    assert "(255, 255, 255) (0, 0, 0)" in said


def test_the_registry_names_the_default_first():
    assert "blip-itm" in REGISTRY.names()
    assert REGISTRY.get("blip-itm") is BlipITM
