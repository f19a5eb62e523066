"""The promises of a PEFT tuner, kept by every configuration of PromptCore."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import tiny_clip
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import normalize

from lvlm_guard.adapters.prompts import CONFIGURATIONS, PromptLayer, add_prompts, configuration, coop, dual_prompt, vpt
from lvlm_guard.errors import KnobError, UnsupportedCallError

TOKENIZER = tiny_clip.tokenizer()
CASES = {
    "coop": {},
    "vpt": {"depth": 1, "n_ctx": 3},
    "vpt-deep": {"depth": 3},
    "maple": {"depth": 2},
    "dual-prompt": {"depth": 3, "coupling_rank": 2},
    "dual-prompt-full": {"depth": 2, "coupling_rank": 0},
    "dual-prompt-uncoupled": {"depth": 2, "coupling": "none", "coupling_rank": 0},
    "dual-prompt-residual": {"depth": 3, "prompt_mode": "residual"},
    "coop-deep-normal": {"depth": 3, "init": "normal"},
}
LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2, "init_lora_weights": False}


def config_of(case):
    name = next(known for known in sorted(CONFIGURATIONS, key=len, reverse=True) if case.startswith(known))
    return configuration(name, TOKENIZER, **CASES[case])


def inputs(config):
    slots = torch.tensor(config.placeholder_ids, dtype=torch.long).expand(3, -1)
    words = torch.tensor(
        TOKENIZER(["red dog a", "blue cat an", "the small car"], add_special_tokens=False)["input_ids"]
    )
    ends = [torch.full((3, 1), token) for token in (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)]
    ids = torch.cat([ends[0], slots, words, ends[1]], 1)
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "pixel_values": pixels}


def loss_of(model, batch):
    out = model(**batch)
    scores = 10 * normalize(out.text_embeds, dim=-1) @ normalize(out.image_embeds, dim=-1).T
    return torch.nn.functional.cross_entropy(scores, torch.arange(3))


def trained(model, batch, steps=3):
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("case", CASES)
def test_three_steps_change_every_prompt_tensor_and_no_bit_of_clip(case):
    clip, config = tiny_clip.clip(), config_of(case)
    model = get_peft_model(clip, config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained(model, inputs(config))
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned
    assert all("dual_prompt_" in name for name in learned)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in learned), name


@pytest.mark.parametrize("case", CASES)
def test_every_learnable_tensor_receives_a_gradient_after_one_step(case):
    config = config_of(case)
    model = trained(get_peft_model(tiny_clip.clip(), config), inputs(config), steps=1)
    model.zero_grad()
    loss_of(model, inputs(config)).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 1e-7, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("case", CASES)
def test_a_disabled_adapter_gives_plain_clip_bit_for_bit(case):
    config = config_of(case)
    batch = inputs(config)
    plain = tiny_clip.clip()(**batch).logits_per_image
    model = trained(get_peft_model(tiny_clip.clip(), config), batch)
    assert not torch.equal(model(**batch).logits_per_image, plain)
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits_per_image, plain)
    assert torch.equal(model.unload()(**batch).logits_per_image, plain)


@pytest.mark.parametrize("case", CASES)
def test_a_saved_adapter_loads_under_another_name_and_answers_the_same(case, tmp_path):
    config = config_of(case)
    batch = inputs(config)
    model = trained(get_peft_model(tiny_clip.clip(), config), batch).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_clip.clip(), tmp_path, adapter_name="mine")
    assert torch.equal(again(**batch).logits_per_image, model(**batch).logits_per_image)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == sum(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_a_saved_adapter_answers_the_same_bits_in_a_new_process(tmp_path):
    config = config_of("dual-prompt")
    batch = inputs(config)
    clip = tiny_clip.clip()
    clip.save_pretrained(tmp_path / "clip")
    model = trained(get_peft_model(clip, config), batch).eval()
    model.save_pretrained(tmp_path / "adapter")
    torch.save(batch | {"expected": model(**batch).logits_per_image.detach()}, tmp_path / "batch.pt")
    script = (
        "import sys, torch; from pathlib import Path; import lvlm_guard.adapters; from peft import PeftModel; "
        "from transformers import CLIPModel; torch.set_num_threads(int(sys.argv[2])); at = Path(sys.argv[1]); "
        "batch = torch.load(at / 'batch.pt'); expected = batch.pop('expected'); "
        "model = PeftModel.from_pretrained(CLIPModel.from_pretrained(at / 'clip'), str(at / 'adapter')); "
        "sys.exit(0 if torch.equal(model(**batch).logits_per_image, expected) else 3)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_our_import_peft_does_not_know_the_tuner_and_importing_us_registers_it():
    script = (
        "import peft, sys; known = lambda: 'DUAL_PROMPT' in [str(m.value) for m in peft.PeftType]; assert not known(); "
        "import lvlm_guard; assert 'lvlm_guard.adapters' not in sys.modules; import lvlm_guard.adapters; "
        "assert known(); "
        "from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as m; assert 'DUAL_PROMPT' in m"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_adapters_of_different_depth_and_number_are_switched_and_one_is_deleted():
    first, second = coop(TOKENIZER, n_ctx=4), dual_prompt(TOKENIZER, n_ctx=2, depth=3)
    one = trained(get_peft_model(tiny_clip.clip(), first, "one"), inputs(first))
    two = trained(get_peft_model(tiny_clip.clip(), second, "two"), inputs(second))
    both = get_peft_model(tiny_clip.clip(), first, "one")
    both.add_adapter("two", second)
    both.load_state_dict(one.state_dict(), strict=False)
    both.load_state_dict(two.state_dict(), strict=False)
    for _ in range(2):
        both.set_adapter("one")
        assert torch.equal(both(**inputs(first)).logits_per_image, one(**inputs(first)).logits_per_image)
        both.set_adapter("two")
        assert torch.equal(both(**inputs(second)).logits_per_image, two(**inputs(second)).logits_per_image)
    learned = [name for name, parameter in both.named_parameters() if parameter.requires_grad]
    assert learned
    assert all(name.endswith(".two") for name in learned)
    both.delete_adapter("one")
    assert not [name for name in both.state_dict() if name.endswith(".one")]
    assert torch.equal(both(**inputs(second)).logits_per_image, two(**inputs(second)).logits_per_image)


def test_two_adapters_at_once_are_refused_because_they_share_the_slots():
    model = get_peft_model(tiny_clip.clip(), vpt(depth=1), "one")
    model.add_adapter("two", vpt(depth=1))
    with pytest.raises(KnobError, match=r"one, two can't be active together.*Choose one"):
        model.base_model.set_adapter(["one", "two"])


def test_merging_is_refused_and_says_why():
    model = get_peft_model(tiny_clip.clip(), vpt(depth=1))
    for merge in (model.merge_and_unload, model.merge_adapter, model.unmerge_adapter):
        with pytest.raises(UnsupportedCallError, match="can't be merged into CLIP"):
            merge()
    layer = next(module for module in model.modules() if isinstance(module, PromptLayer))
    with pytest.raises(UnsupportedCallError, match="can't be merged into CLIP"):
        layer.merge()


def test_beside_a_lora_both_are_trained_saved_alone_and_loaded_to_the_same_answers(tmp_path):
    config = dual_prompt(TOKENIZER, depth=2)
    batch = inputs(config)
    torch.manual_seed(3)
    lora = get_peft_model(tiny_clip.clip(), LoraConfig(**LORA))
    model = trained(add_prompts(lora, config), batch)
    for kind in ("lora_", "dual_prompt_"):
        grads = [p.grad for name, p in model.named_parameters() if kind in name]
        assert all(grad is not None for grad in grads), kind
    expected = model.eval()(**batch).logits_per_image
    model.save_pretrained(tmp_path / "prompts")
    assert all("dual_prompt_" in key for key in load_file(tmp_path / "prompts" / "adapter_model.safetensors"))
    with model.disable_adapter():
        assert torch.equal(model(**batch).logits_per_image, tiny_clip.clip()(**batch).logits_per_image)
    model.unload()
    lora.save_pretrained(tmp_path / "lora")
    assert all("lora_" in key for key in load_file(tmp_path / "lora" / "adapter_model.safetensors"))

    again = PeftModel.from_pretrained(tiny_clip.clip(), tmp_path / "lora").get_base_model()
    again = PeftModel.from_pretrained(again, tmp_path / "prompts").eval()
    assert torch.equal(again(**batch).logits_per_image, expected)


def test_a_lora_below_keeps_its_own_config_when_prompts_go_on_top():
    lora = get_peft_model(tiny_clip.clip(), LoraConfig(**LORA))
    model = add_prompts(lora, vpt(depth=1))
    for holder in (lora, lora.get_base_model(), model.unload()):
        assert isinstance(holder.peft_config["default"], LoraConfig)
    assert not isinstance(model.peft_config["default"], LoraConfig)


def test_the_config_file_reads_back_as_the_same_config(tmp_path):
    config = dual_prompt(TOKENIZER, depth=2)
    config.save_pretrained(tmp_path)
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert read == config
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "DUAL_PROMPT"
    assert copy.deepcopy(read.peft_type) is read.peft_type


def test_prompts_of_a_half_precision_clip_are_kept_in_float32_and_used_in_its_precision():
    config = dual_prompt(TOKENIZER, depth=2)
    model = get_peft_model(tiny_clip.clip().to(torch.bfloat16), config)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = inputs(config)
    out = model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"].to(torch.bfloat16))
    assert out.text_embeds.dtype == torch.bfloat16
    assert out.logits_per_image.isfinite().all()


def test_a_copy_of_the_model_has_vision_prompts_of_its_own_text_prompts():
    config = dual_prompt(TOKENIZER, depth=2)
    model = get_peft_model(tiny_clip.clip(), config)
    twin = copy.deepcopy(model)
    before = model(**inputs(config)).image_embeds
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if "text_model" in name and "dual_prompt_ctx" in name:
                parameter.add_(1)
    assert torch.equal(model(**inputs(config)).image_embeds, before)
    assert not torch.allclose(twin(**inputs(config)).image_embeds, before, atol=1e-3)


def test_a_folder_loads_with_memory_saving_as_without_it(tmp_path):
    config = dual_prompt(TOKENIZER, depth=2)
    model = trained(get_peft_model(tiny_clip.clip(), config), inputs(config)).eval()
    model.save_pretrained(Path(tmp_path))
    again = PeftModel.from_pretrained(tiny_clip.clip(), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(again(**inputs(config)).logits_per_image, model(**inputs(config)).logits_per_image)


def test_the_heads_of_two_adapters_are_switched_with_their_prompts_whatever_these_are_called():
    model = get_peft_model(tiny_clip.clip(), vpt(depth=1, head={"image": 0.2}), "one")
    model.add_adapter("two", vpt(depth=1, head={"image": 0.9}))
    head = model.get_base_model().visual_projection
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert head.current is head.dual_prompt_head[name]
        learned = {key for key, parameter in head.named_parameters() if parameter.requires_grad}
        assert learned
        assert all(f".{name}." in key for key in learned)
    model.delete_adapter("one")
    assert list(head.dual_prompt_head) == ["two"]
