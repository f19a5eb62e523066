"""What was asked on the page, as a Python script that asks the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_guard.play.backend import GREEDY, Asked


def file_code(name: str) -> str:
    """Return the lines that open a picture by its file's name."""
    return f"from lvlm_guard.images import load_image\n\npicture = load_image({name!r})"


def scene_code(number: int) -> str:
    """Return the lines that draw a held-out scene of the embedded world."""
    return (
        "from PIL import Image\n\nfrom lvlm_guard.embedded.world import scenes\n\n"
        f'picture = Image.fromarray(scenes("test", {number + 1}).image[{number}])'
    )


def packaged_code(package: str, path: str) -> str:
    """Return the lines that open a picture which ships with another package."""
    return (
        "from importlib.resources import files\n\nfrom lvlm_guard.images import load_image\n\n"
        f"picture = load_image(files({package!r}) / {path!r})"
    )


def local(model: str, loaded: Mapping[str, Any], picture: str, asked: Asked, methods: Sequence[Any]) -> str:
    """Return a script on a model in this process.

    Args:
        model: its name.
        loaded: further arguments of `load_model`.
        picture: of one of the functions above.
        asked: picture and prompt.
        methods: finished ones; False for the plain answer.
    """
    told = [_method(method) for method in methods]
    more = "".join(f", {key}={value!r}" for key, value in loaded.items())
    imports, view = picture.rsplit("\n\n", 1)
    lines = [imports]
    if any("CLASSES" in one for one in told):
        lines.append("from lvlm_guard.embedded.world import CLASSES")
    lines += [
        "from lvlm_guard import guard, methods",
        "from lvlm_guard.pretrained import ask, load_model, spoken",
        "",
        view,
        f"model, processor = guard(*load_model({model!r}{more}))",
        f"for method in [{', '.join(told)}]:  # False: the plain answer",
        f"    inputs = ask(processor, [[picture]], [{asked.prompt!r}]).to(model.device, dtype=model.dtype)",
        f"    tokens = model.generate(**inputs, max_new_tokens={asked.most_tokens}, do_sample=False, guard=method)",
        '    answer = spoken(processor, tokens[0, inputs["input_ids"].shape[1] :]).strip()',
        f'    print(method.name if method else "{GREEDY}", answer, sep=": ")',
    ]
    return "\n".join(lines) + "\n"


def _method(method: Any) -> str:
    if not method:
        return "False"
    given = []
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.init and value != field.default:
            given.append(f"{field.name}={'tuple(CLASSES)' if _world(value) else repr(value)}")
    return f"methods.{type(method).__name__}({', '.join(given)})"


def _world(value: Any) -> bool:
    from lvlm_guard.embedded.world import CLASSES

    return isinstance(value, tuple) and value == tuple(CLASSES)


def remote(url: str, name: str, picture: str, questions: Sequence[Asked]) -> str:
    """Return a script for OpenAI's client; its key is the environment's `OPENAI_API_KEY`.

    Args:
        url: the server's, with /v1.
        name: of the plain model.
        picture: of one of the functions above.
        questions: of one picture and prompt.
    """
    imports, view = picture.rsplit("\n\n", 1)
    asked = questions[0]
    models = []
    for one in questions:
        full = name if one.method == GREEDY else f"{name}-{one.method}"
        models.append(f"    ({full!r}, { ({f'{one.method}_{k}': v for k, v in one.knobs.items()})!r}),")
    lines = [
        "import base64",
        "import io",
        "import os",
        imports,
        "from openai import OpenAI",
        "",
        view,
        "written = io.BytesIO()",
        'picture.save(written, "PNG")',
        'url = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()',
        f'client = OpenAI(base_url={url!r}, api_key=os.environ.get("OPENAI_API_KEY") or "EMPTY")',
        "for model, knobs in [",
        *models,
        "]:",
        '    parts = [{"type": "image_url", "image_url": {"url": url}}, '
        f'{{"type": "text", "text": {asked.prompt!r}}}]',
        "    answer = client.chat.completions.create(",
        '        model=model, messages=[{"role": "user", "content": parts}], '
        f'max_tokens={asked.most_tokens}, temperature=0, extra_body={{"vllm_xargs": knobs}} if knobs else {{}}',
        "    )",
        '    print(model, answer.choices[0].message.content.strip(), getattr(answer, "lvlm_guard", ""), sep=": ")',
    ]
    return "\n".join(lines) + "\n"
