"""The page of `genkit demo`: what one sets, and what is then shown."""

from __future__ import annotations

import functools
import html as escaping
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from genkit.completion import SIDES
from genkit.demo.drawing import MOST, completed, drawn
from genkit.demo.figures import SIDE, SMALL, html
from genkit.demo.tokenizing import channels_note, colours_note, tokenized
from genkit.errors import GenkitError, OptionError
from genkit.prior import Prior
from genkit.tokenizer import Tokenizer

# One computation at a time: they share the model's device.
_ONE: dict[str, Any] = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
# Images that are drawn unless said otherwise, and completions.
_NUMBER, _COMPLETIONS = 16, 6
# Rules that are whole numbers, with their labels. Gradio's own checks would round a fraction, and
# print a traceback for a number below the minimum.
_WHOLE = {"top_k": "Top-k", "steps": "Steps"}
# The controls of the rules of sampling, in their order on the page.
_RULES: dict[str, Callable[[], Any]] = {
    "guidance": lambda: gr.Slider(
        *(0, 10, 1), step=0.1, label="Guidance", info="higher: closer to the class"
    ),
    "temperature": lambda: gr.Slider(
        *(0, 2, 1), step=0.05, label="Temperature", info="lower: less varied"
    ),
    "top_p": lambda: gr.Slider(*(0, 1, 1), step=0.01, label="Top-p", info="1 is off"),
    "top_k": lambda: gr.Number(0, label=_WHOLE["top_k"], info="0 is off", step=1),
    "steps": lambda: gr.Number(0, label=_WHOLE["steps"], info="0: the prior's own", step=1),
}
# A slider's number that is left empty becomes its default; Gradio would take the minimum.
JS = """() => document.addEventListener("blur", ({target}) => {
  if (target.type === "number" && target.value === "")
    target.parentElement.querySelector(".reset-button")?.click();
}, true)"""


def page(model: Tokenizer | Prior, name: str) -> gr.Blocks:
    """The page of a model; `name` is what it is called in the title."""
    with gr.Blocks(title=f"{name} - genkit", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown(f"# {escaping.escape(name)}\n{_about(model)}")
        if isinstance(model, Tokenizer):
            _reconstruct(model)
        else:
            with gr.Tab("Draw"):
                _draw(model)
            with gr.Tab("Complete"):
                _complete(model)
            with gr.Tab("Reconstruct"):
                _reconstruct(model.tokenizer)
    return blocks


def _about(model: Tokenizer | Prior) -> str:
    """A sentence on the model."""
    if isinstance(model, Tokenizer):
        levels = ", ".join(
            f"{f'{count} x ' if count > 1 else ''}{size:,} codes at stride {level.stride}"
            for level, (count, size) in zip(model.levels, model.codebooks, strict=True)
        )
        return f"A tokenizer: {levels}; {model.bits_per_pixel:.3f} bits per pixel."
    height, width = model.size
    kinds = f" of {len(model.classes)} classes" if model.classes else ""
    text = (
        f"A prior ({model.part.name}) that draws images{kinds}, {height} x {width} pixels "
        "(high x wide)."
    )
    if model.conditioning.channels:
        text += " It was trained with vectors as a condition; this page draws without one."
    return text


def _reconstruct(tokenizer: Tokenizer) -> None:
    hints = [
        _hint("Drop an image to see its reconstruction."),
        _hint(colours_note(tokenizer)),
        _hint("What each level contributes."),
    ]
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            file = _drop()
        with gr.Column(scale=4):
            pictures = _shown(hints[0])
    gr.Markdown("### Indices")
    maps = _shown(hints[1])
    gr.Markdown("### Levels")
    levels = _shown(hints[2])

    def show(path: str | None) -> list[str]:
        if path is None:
            return hints
        found = tokenized(tokenizer, path)
        return [
            html(found.pictures, [found.facts], SIDE),
            html(found.maps, [colours_note(tokenizer)], SMALL),
            html(found.shares, [found.about], SMALL),
        ]

    file.change(_told(show), file, [pictures, maps, levels], show_progress_on=pictures, **_ONE)


def _draw(prior: Prior) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            number = gr.Slider(1, MOST, _NUMBER, step=1, label="Images")
            button = gr.Button("Draw", variant="primary")
            seed, classes, rules = _settings(prior)
        with gr.Column(scale=3):
            pictures = _shown(_hint("Press Draw."))

    def show(number: int, seed: float | None, classes: Sequence[int], *values: Any) -> str:
        chosen = _chosen(list(rules), values)
        found = drawn(prior, number, _whole("Seed", seed), classes, **chosen)
        return html(found, _note(prior), SMALL)

    button.click(_told(show), [number, seed, classes, *rules.values()], pictures, **_ONE)


def _complete(prior: Prior) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=260):
            file = _drop()
            keep = gr.Radio(list(SIDES), value=SIDES[0], label="Keep")
            share = gr.Slider(5, 95, 50, step=5, label="Kept part", info="% of the image")
            number = gr.Slider(1, MOST, _COMPLETIONS, step=1, label="Completions")
            button = gr.Button("Complete", variant="primary")
            seed, classes, rules = _settings(prior)
        with gr.Column(scale=3):
            given = _shown(_hint("Drop an image and press Complete."))
            pictures = _shown("")

    def show(
        path: str | None,
        keep: str,
        percent: float,
        number: int,
        seed: float | None,
        classes: Sequence[int],
        *values: Any,
    ) -> list[str]:
        if path is None:
            raise GenkitError("drop an image first")
        chosen = _chosen(list(rules), values)
        asked = keep, percent / 100, number, _whole("Seed", seed), classes
        before, after = completed(prior, path, *asked, **chosen)
        return [html(before, _note(prior), SMALL), html(after, side=SMALL)]

    inputs = [file, keep, share, number, seed, classes, *rules.values()]
    button.click(_told(show), inputs, [given, pictures], show_progress_on=given, **_ONE)


def _settings(
    prior: Prior,
) -> tuple[gr.components.Component, gr.components.Component, dict[str, Any]]:
    """Seed, classes, and the rules of sampling that the prior follows."""
    seed = gr.Number(0, label="Seed", step=1)
    classes = gr.Dropdown(
        [(name, number) for number, name in enumerate(prior.classes)],
        value=[],
        multiselect=True,
        visible=bool(prior.classes),
        label="Classes",
        info="drawn in turn; empty: without a class",
    )
    # Guidance needs a condition, and the page can only give classes.
    rules = {
        rule: control()
        for rule, control in _RULES.items()
        if rule in prior.model.rules and (rule != "guidance" or prior.classes)
    }
    return seed, classes, rules


def _chosen(rules: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """The rules of sampling with their values; 0 steps are the prior's own number."""
    chosen = {
        rule: _whole(_WHOLE[rule], value) if rule in _WHOLE else value
        for rule, value in zip(rules, values, strict=True)
    }
    return {rule: value for rule, value in chosen.items() if rule != "steps" or value}


def _whole(label: str, value: float | None) -> int:
    """The number of a field; `OptionError` if it is empty, negative or not whole."""
    if value is None or value < 0 or value % 1:
        raise OptionError(f"{label} must be a whole number from 0")
    return int(value)


def _drop() -> gr.File:
    return gr.File(label="Image", height=140, elem_classes="drop")


def _shown(text: str) -> gr.HTML:
    """A place for figures, which begins with a text."""
    return gr.HTML(text, padding=False)


def _hint(text: str) -> str:
    return html([], [text])


def _note(prior: Prior) -> list[str]:
    return [note] if (note := channels_note(prior.tokenizer)) else []


def _told(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose expected failures the page shows as one sentence."""

    @functools.wraps(function)
    def told(*values: Any) -> Any:
        try:
            return function(*values)
        except GenkitError as error:
            text = str(error)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            text = "there is not enough memory: take a smaller image or fewer of them"
        raise gr.Error(_sentence(text, values), print_exception=False)

    return told


def _sentence(text: str, values: Sequence[Any]) -> str:
    """An error as the page shows it: files by name, without the classes of Python's errors."""
    text = re.sub(r"\b[A-Z]\w*Error: ", "", text).rstrip(".") + "."
    for path in (Path(value) for value in values if isinstance(value, str)):
        text = text.replace(str(path), path.name)
        if text.startswith(path.name):
            return escaping.escape(text, quote=False)
    return escaping.escape(text[:1].upper() + text[1:], quote=False)
