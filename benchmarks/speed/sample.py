"""Priors: images drawn per second beside other libraries, cost by size, and the training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.jobs import table
from benchmarks.speed.timing import Settings, Work, cell, interleaved, ratios, spread
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Grid, Layout
from genkit.settings import choose
from genkit.training.learner import Learner
from genkit.training.prior import Fit

TITLE = "Priors"
# The layout of the default tokenizer: one coarse index and four fine ones in each of 64 places.
LAYOUT = Layout([Grid(16, 16, 1, 512), Grid(8, 8, 1, 512)])
CLASSES, GUIDANCE, BATCH = 10, 2.0, 16
OURS, MASKED = "genkit, autoregressive", "genkit, masked"
LLAMA, XT = "transformers, generate", "x-transformers, generate"
# A llama of as many parameters.
_WIDTH, _DEPTH, _HEADS, _INNER = 256, 5, 4, 704


def measure(settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    seconds = 0.0 if settings.quick else 60.0
    batch = 2 if settings.quick else BATCH
    found = {}
    for guided in (True, False):
        work, parameters = _ways(batch, guided)
        times = interleaved(work, seconds, (2 if settings.quick else 3, 20))
        slowest = LLAMA if LLAMA in work else OURS
        found["with guidance" if guided else "without guidance"] = {
            "rates": {name: spread([batch / t for t in each]) for name, each in times.items()},
            "times": ratios(times, slowest),
            "parameters": parameters,
        }
    return {"batch": batch, "draws": found, "growth": _growth(settings), "step": _step(settings)}


def prior(layout: Layout = LAYOUT, name: str = "autoregressive", **options: Any) -> Any:
    """An untrained prior, which is as fast as a trained one."""
    built = choose("prior", {"name": name, **options}).build(layout, Conditioning(CLASSES))
    return built.eval()


def draw(model: Any, batch: int, guided: bool) -> Work:
    """Draws a batch of sequences."""
    classes = torch.arange(batch) % CLASSES
    rules = Rules(guidance=GUIDANCE if guided else 1.0)

    def work() -> Tensor:
        generators = [torch.Generator().manual_seed(n) for n in range(batch)]
        with torch.no_grad():
            drawn: Tensor = model.sample(classes, None, generators, rules)
        return drawn

    return work


def _ways(batch: int, guided: bool) -> tuple[dict[str, Work], dict[str, int]]:
    """Ways to draw a batch of 320 indices each, and the numbers of parameters."""
    ours, masked = prior(), prior(name="masked")
    work = {OURS: draw(ours, batch, guided), MASKED: draw(masked, batch, guided)}
    models: dict[str, nn.Module] = {OURS: ours, MASKED: masked}
    for name, make in {LLAMA: _llama, **({} if guided else {XT: _x_transformers})}.items():
        try:
            models[name], work[name] = make(batch, guided)
        except ImportError:
            continue
    parameters = {
        name: sum(each.numel() for each in model.parameters()) for name, model in models.items()
    }
    return work, parameters


def _llama(batch: int, guided: bool) -> tuple[nn.Module, Work]:
    """The llama of transformers: a class token, then 320 indices, with a static cache."""
    from transformers import LlamaConfig, LlamaForCausalLM

    count = len(LAYOUT)
    config = LlamaConfig(
        vocab_size=512 + CLASSES + 1,
        hidden_size=_WIDTH,
        intermediate_size=_INNER,
        num_hidden_layers=_DEPTH,
        num_attention_heads=_HEADS,
        max_position_embeddings=count + 1,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    start = 512 + torch.arange(batch)[:, None] % CLASSES
    negative = torch.full_like(start, 512 + CLASSES)
    guidance = {"guidance_scale": GUIDANCE, "negative_prompt_ids": negative} if guided else {}

    def work() -> Any:
        return model.generate(
            start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=count,
            do_sample=True,
            top_k=0,
            cache_implementation="static",
            disable_compile=True,
            suppress_tokens=list(range(512, 512 + CLASSES + 1)),
            **guidance,
        )

    if work().shape[1] != count + 1:
        raise SystemExit("transformers drew another number of indices")
    return model, work


def _x_transformers(batch: int, guided: bool) -> tuple[nn.Module, Work]:
    """A decoder of x-transformers, which has no guidance."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    count = len(LAYOUT)
    model = TransformerWrapper(
        num_tokens=512 + CLASSES,
        max_seq_len=count + 1,
        use_abs_pos_emb=False,
        attn_layers=Decoder(
            dim=_WIDTH,
            depth=_DEPTH,
            heads=_HEADS,
            attn_dim_head=_WIDTH // _HEADS,
            rotary_pos_emb=True,
            ff_swish=True,
            ff_glu=True,
            ff_mult=_INNER / _WIDTH,
            attn_flash=True,
        ),
    ).eval()
    wrapped = AutoregressiveWrapper(model)
    start = 512 + torch.arange(batch)[:, None] % CLASSES
    return model, lambda: wrapped.generate(start, count, filter_logits_fn=lambda logits: logits)


def _growth(settings: Settings) -> dict[str, list[tuple[int, float]]]:
    """Milliseconds per image, with guidance, as one size grows."""
    small = settings.quick
    cases: dict[str, dict[int, Callable[[], Work]]] = {
        "positions": {
            5 * side * side: _of_side(side) for side in ((2, 4) if small else (4, 8, 16))
        },
        "batch": {each: _of_batch(each) for each in ((1, 2) if small else (1, 4, 16, 64))},
        "width": {each: _of_width(each) for each in ((32, 64) if small else (128, 256, 512))},
    }
    found = {}
    for name, made in cases.items():
        work = {str(size): make() for size, make in made.items()}
        times = interleaved(work, 0.0 if small else 20.0, (2, 10))
        found[name] = [
            (size, 1e3 * spread(times[str(size)])["median"] / (size if name == "batch" else 4))
            for size in made
        ]
    return found


def _of_side(side: int) -> Callable[[], Work]:
    layout = Layout([Grid(2 * side, 2 * side, 1, 512), Grid(side, side, 1, 512)])
    return lambda: draw(prior(layout), 4, True)


def _of_batch(batch: int) -> Callable[[], Work]:
    return lambda: draw(prior(), batch, True)


def _of_width(width: int) -> Callable[[], Work]:
    return lambda: draw(prior(width=width), 4, True)


def _step(settings: Settings) -> dict[str, Any]:
    """Alternating steps of our learner and of a loop written by hand, on the same sequences."""
    from accelerate import Accelerator

    batch = 2 if settings.quick else 32
    model = prior().train()
    twin = copy.deepcopy(model)
    chosen = choose("optimizer", {"name": "muon"})
    learner = Learner(
        "prior",
        Fit(model),
        Accelerator(cpu=True),
        lambda module: chosen.build(module, 1e-3, torch.float32),
        lambda step: 1e-3,
        clip=1.0,
        ema=0.99,
    )
    bare = chosen.build(twin, 1e-3, torch.float32)
    average = copy.deepcopy(twin)
    pairs = [list(each.parameters()) for each in (average, twin)]
    sequence = torch.randint(512, (batch, len(LAYOUT)))
    classes = torch.arange(batch) % CLASSES

    def ours() -> None:
        learner.begin(0)
        loss = learner.model(sequence, classes, 0)
        learner.backward(loss)
        learner.finish([loss.detach()])

    def by_hand() -> None:
        twin.loss(sequence, classes, torch.Generator().manual_seed(0)).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        bare.step()
        bare.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(pairs[0], pairs[1], 0.01)

    times = interleaved({"ours": ours, "by hand": by_hand}, 0 if settings.quick else 90, (3, 60))
    return {
        "batch": batch,
        "seconds": {name: spread(each) for name, each in times.items()},
        "ratio": ratios(times, "by hand")["ours"],
    }


def page(figures: dict[str, Any], folder: Any) -> str:
    parts = [
        f"Images drawn per second, {figures['batch']} at a time, 320 indices of 512 codes each, in "
        "an 8 x 8 and a 16 x 16 grid, by untrained models of nearly the same size. genkit's "
        "autoregressive prior draws 64 places of five indices; the others draw 320 tokens with a "
        "static or a growing cache. x-transformers has no guidance."
    ]
    for title, found in figures["draws"].items():
        rows = [
            (
                name,
                f"{found['parameters'][name] / 1e6:.2f}",
                cell(found["rates"][name], 2),
                f"{1 / found['times'][name]['median']:.1f}",
                f"{found['rates'][name]['median'] * len(LAYOUT):.0f}",
            )
            for name in found["rates"]
        ]
        heads = (title, "million parameters", "images/s", "relative to transformers", "indices/s")
        parts.append(table(heads, rows))
    growth: Mapping[str, list[tuple[int, float]]] = figures["growth"]
    rows = [
        (name, ", ".join(f"{size:,}: {ms:.0f}" for size, ms in growth[name])) for name in growth
    ]
    parts += [
        "Milliseconds of one image with guidance as one size grows: positions of an image, images "
        "at a time, and width of the transformer.",
        table(("size", "milliseconds per image"), rows),
    ]
    step = figures["step"]
    parts.append(
        f"A training step of {step['batch']} sequences takes "
        f"{cell(step['ratio'], 3)} of the time of a loop written by hand, with Muon, clipping and "
        f"averaged weights ({cell(step['seconds']['ours'], 2)} s)."
    )
    return "\n\n".join(parts)
