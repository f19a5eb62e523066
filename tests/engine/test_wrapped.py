"""A model stays guarded within what people wrap around it: PEFT, accelerate, torch.compile, pipelines."""

import inspect
from typing import Any

import pytest
import tiny
import torch
from asking import RUN, agla, ask
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    CompileConfig,
    LlavaForConditionalGeneration,
    pipeline,
)

from lvlm_guard import guard, methods, unguard
from lvlm_guard.embedded import MODEL, world
from lvlm_guard.errors import MissingViewError
from lvlm_guard.pretrained import ask as ask_in_template


def test_a_peft_model_is_guarded_within():
    from peft import LoraConfig, get_peft_model

    model, processor = tiny.make("llava", scale=5.0)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    wrapped.double()
    pair = guard(wrapped, processor, agla())
    assert pair[0] is wrapped
    inputs = ask(pair, ("What?", 1))
    lazy = wrapped.generate(**inputs, **RUN, guard_execution="lazy")
    out = wrapped.generate(**inputs, **RUN, guard_execution="batched", return_dict_in_generate=True)
    assert torch.equal(lazy, out.sequences)
    assert out.guard.masks == 1
    strong = wrapped.generate(**inputs, **RUN, guard=agla(alpha=9.0, beta=0.001))
    assert not torch.equal(strong, wrapped.generate(**inputs, **RUN, guard=False))
    unguard(wrapped)
    assert type(wrapped.get_base_model()) is LlavaForConditionalGeneration


@pytest.mark.parametrize("order", ["dispatched first", "guarded first"])
def test_device_maps_put_a_forward_on_the_instance_and_stay_guarded(order):
    from accelerate import dispatch_model

    model, processor = tiny.make("llava", scale=5.0)
    reference = guard(*tiny.make("llava", scale=5.0), agla())
    expected = reference[0].generate(**ask(reference, ("What?", 1)), **RUN)
    device_map = {
        "model.vision_tower": "cpu",
        "model.multi_modal_projector": "cpu",
        "model.language_model": "cpu",
        "lm_head": "cpu",
    }
    if order == "dispatched first":
        model = dispatch_model(model, device_map, main_device="cpu", force_hooks=True)
        guard(model, processor, agla())
    else:
        guard(model, processor, agla())
        model = dispatch_model(model, device_map, main_device="cpu", force_hooks=True)
    assert "forward" in vars(model)
    assert torch.equal(model.generate(**ask((model, processor), ("What?", 1)), **RUN), expected)


@pytest.mark.parametrize("execution", ["lazy", "batched"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_whose_weights_lie_on_disk_between_its_calls_is_guarded(family, execution, tmp_path):
    from accelerate import dispatch_model

    whole, _ = reference = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, processor = tiny.make(family, scale=5.0)
    places = {f"model.{name}": "disk" for name, _ in model.model.named_children()} | {"lm_head": "cpu"}
    model = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.device.type == "meta"  # where its first weights are, and no tensor can be put
    pair = guard(model, processor, agla(beta=0.1))
    for method in (agla(beta=0.1), methods.VCD()):
        expected = whole.generate(**ask(reference, ("What?", 1), ("Who?", 2)), **RUN, guard=method)
        inputs = ask(pair, ("What?", 1), ("Who?", 2))
        assert torch.equal(model.generate(**inputs, **RUN, guard=method, guard_execution=execution), expected)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_model_is_guarded_alike_in_every_execution(bits):
    kept = ["lm_head", "down_proj", "multi_modal_projector", "vision_tower"]  # on CPUs, 4 bit takes multiples of 64
    bnb: dict[str, Any] = {"bnb_4bit_compute_dtype": torch.float32} if bits == 4 else {}
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, llm_int8_skip_modules=kept, **bnb)
    model = AutoModelForImageTextToText.from_pretrained(MODEL, quantization_config=config, device_map="cpu")
    assert f"Linear{bits}bit" in str({type(module).__name__ for module in model.modules()})
    _, processor = guard(model, AutoProcessor.from_pretrained(MODEL), agla(beta=0.05))
    processor.tokenizer.padding_side = "left"
    scenes = world.scenes("val", 3)
    inputs = ask_in_template(
        processor, [[Image.fromarray(scenes.image[i])] for i in range(3)], [world.CAPTION_PROMPT] * 3
    )
    plain = model.generate(**inputs, **RUN, guard=False)
    assert torch.equal(model.generate(**inputs, **RUN, guard=agla(alpha=0.0, beta=0.0)), plain)
    lazy, batched, auto = (
        model.generate(**inputs, **RUN, guard_execution=execution, return_dict_in_generate=True)
        for execution in ("lazy", "batched", "auto")
    )
    assert torch.equal(lazy.sequences, batched.sequences)
    assert torch.equal(lazy.sequences, auto.sequences)
    assert not torch.equal(lazy.sequences, plain)
    assert auto.guard.masks == 3


def test_a_replaced_forward_stays_guarded(pair):
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN)
    plain = model.forward
    model.forward = lambda *args, **kwargs: plain(*args, **kwargs)  # as torch.compile(model.forward) does
    model.forward.__signature__ = inspect.signature(plain)
    assert torch.equal(model.generate(**inputs, **RUN), expected)


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
def test_compiled_models_give_the_same_tokens(execution):
    pair = guard(*tiny.make("llava", scale=5.0), agla())
    model, processor = pair
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN)
    wrapped = torch.compile(model, backend="eager")
    guard(wrapped, processor, agla())
    assert torch.equal(wrapped.generate(**inputs, **RUN, guard_execution=execution), expected)
    config = CompileConfig(backend="eager", mode=None, fullgraph=False)
    config._compile_all_devices = True
    static = model.generate(
        **inputs, **RUN, guard_execution=execution, cache_implementation="static", compile_config=config
    )
    assert torch.equal(static, expected)
    assert torch.equal(
        model.generate(**inputs, **RUN, guard=False, cache_implementation="static", compile_config=config),
        model.generate(**inputs, **RUN, guard=False),
    )


def compiling(graphs, **settings):
    """A compile config that runs graphs as they are, and notes each one that is traced."""

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(backend=backend, mode=None, fullgraph=False, **settings)
    config._compile_all_devices = True
    return config


@pytest.mark.slow
@pytest.mark.parametrize("how", ["static", "forward"])
def test_a_compiled_model_is_traced_no_more_often_than_a_plain_one(how):
    pair = guard(*tiny.make("llava", scale=5.0), agla(beta=0.1))
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    graphs = []
    config = compiling(graphs)
    if how == "forward":
        model.forward = torch.compile(model.forward, backend=config.backend, dynamic=True)
    calls = {"cache_implementation": "static", "compile_config": config} if how == "static" else {}
    for execution in ("lazy", "batched", "auto"):
        traced = []
        for _ in range(4):
            model.generate(**inputs, **RUN, **calls, guard_execution=execution)
            traced.append(len(graphs))
        assert traced[1] == traced[-1], f"{execution}: {traced}"


@pytest.mark.parametrize("execution", ["lazy", "batched", "auto"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_compiled_call_that_falls_back_to_eager_stays_guarded(family, execution):
    pair = guard(*tiny.make(family, scale=5.0), agla(beta=0.1))
    model, _ = pair
    inputs = ask(pair, ("What?", 1))
    expected = model.generate(**inputs, **RUN)
    calls = {"cache_implementation": "static", "compile_config": compiling([])}
    with torch.compiler.set_stance("force_eager"):
        got = model.generate(**inputs, **RUN, **calls, guard_execution=execution)
        plain = model.generate(**inputs, **RUN, **calls, guard=False)
    assert torch.equal(got, expected)
    assert torch.equal(plain, model.generate(**inputs, **RUN, guard=False))


def test_the_pipeline_of_transformers_works(pair):
    model, processor = pair
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    content = [{"type": "image", "image": tiny.picture(1)}, {"type": "text", "text": "What?"}]
    guarded = pipe(text=[{"role": "user", "content": content}], max_new_tokens=12, return_full_text=False)
    plain = pipe(
        text=[{"role": "user", "content": content}], max_new_tokens=12, return_full_text=False,
        generate_kwargs={"guard": False},
    )  # fmt: skip
    assert guarded[0]["generated_text"] != plain[0]["generated_text"]
    talk = [{"role": "user", "content": content}]
    batch = pipe(text=[talk, talk], batch_size=2, max_new_tokens=12, return_full_text=False)
    assert [answer[0]["generated_text"] for answer in batch] == [guarded[0]["generated_text"]] * 2


def test_views_of_several_inputs_in_a_list_are_put_together(pair):
    model, _ = pair
    one, two = ask(pair, ("What?", 1)), ask(pair, ("What?", 2))
    both = {key: torch.cat([one[key], two[key]]) for key in one if key != "guard_views"}
    out = model.generate(**both, guard_views=[one["guard_views"], two["guard_views"]], **RUN)
    assert torch.equal(out[0], model.generate(**one, **RUN)[0])
    own = ask(pair, ("What?", 2), guard_images=tiny.picture(3))
    with pytest.raises(MissingViewError, match="for all, or for none"):
        model.generate(**both, guard_views=[one["guard_views"], own["guard_views"]], **RUN)
    with pytest.raises(MissingViewError, match="not what the guarded processor gave"):
        model.generate(**both, guard_views=["x"], **RUN)
