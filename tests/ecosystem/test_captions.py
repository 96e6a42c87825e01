"""examples/captions with tiny random text models: from captions to drawn images."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import need
from PIL import Image
from safetensors.torch import load_file

import genkit

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "captions"
# Writes a random model of each type, with its tokenizer, into a folder of its own.
MODELS = """
import sys
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "beach", "green", "hill", "at", "night"]
text = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
text.pre_tokenizer = pre_tokenizers.Whitespace()
text.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
tokenizer = t.PreTrainedTokenizerFast(
    tokenizer_object=text,
    pad_token="[PAD]",
    unk_token="[UNK]",
    cls_token="[CLS]",
    sep_token="[SEP]",
)
small = {
    "vocab_size": len(words),
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
words_of = {**small, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
images_of = {**small, "image_size": 32, "patch_size": 16}
del images_of["vocab_size"]
t5 = t.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
for name, model in {
    "bert": t.BertModel(t.BertConfig(**small)),
    "t5": t.T5Model(t5),
    "t5-encoder": t.T5EncoderModel(t5),
    "clip": t.CLIPModel(t.CLIPConfig(text_config=words_of, vision_config=images_of)),
    "clip-text": t.CLIPTextModel(t.CLIPTextConfig(**words_of)),
}.items():
    model.save_pretrained(f"{sys.argv[1]}/{name}")
    tokenizer.save_pretrained(f"{sys.argv[1]}/{name}")
"""
TINY = (
    "--prior.width 16 --prior.depth 1 --prior.heads 2 --prior.place-width 8 --prior.place-depth 1 "
    "--steps 2 --warmup 0 --batch-size 4 --shown 2 --data.heldout 0.2"
)


def run(folder: Path, *args: str | Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_readmes_commands_run_as_written(trained: Path, tmp_path: Path) -> None:
    need("transformers")
    run(tmp_path, "-c", MODELS, tmp_path / "models")
    shutil.copytree(tmp_path / "models" / "t5-encoder", tmp_path / "text-model")
    shutil.copytree(trained, tmp_path / "runs" / "photographs")
    shutil.copy(EXAMPLE / "captions.py", tmp_path)
    rng = np.random.default_rng(0)
    for number in range(16):
        place = tmp_path / "photographs" / f"{number % 2}" / f"{number:02d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (36, 44, 3), dtype=np.uint8)).save(place)
        if number:
            place.with_suffix(".txt").write_text("a beach at night" if number % 2 else "a hill")
    block = re.findall(r"^```sh\n(.*?)^```", (EXAMPLE / "README.md").read_text(), re.M | re.S)[0]
    for line in block.splitlines():
        name, *args = shlex.split(line)
        args += shlex.split(TINY) if "train-prior" in args else []
        args = ["-m", "genkit_cli", *args] if name == "genkit" else args
        printed = run(tmp_path, *args)
        if "--tokens" in args:
            assert "16 captions, 1 of them empty" in printed
            assert "[T, 16], T at most 6" in printed
    vectors = load_file(tmp_path / "captions.safetensors")
    assert {tuple(each.shape) for each in vectors.values()} == {(2, 16), (4, 16), (6, 16)}
    texts = load_file(tmp_path / "texts.safetensors")
    # A text alone, or beside shorter ones, has the same vectors.
    assert (texts["0000"] - vectors["1/01.png"]).abs().max() < 1e-2
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 16
    prior = genkit.load_prior(tmp_path / "runs" / "text")
    assert (prior.conditioning.length, prior.conditioning.channels) == (6, 16)

    for model in ("bert", "t5", "clip", "clip-text"):
        out, longest = tmp_path / f"{model}.safetensors", ["--length", "4"]
        text = ["--text", "a green hill at night", "hill"]
        run(tmp_path, "captions.py", tmp_path / "models" / model, *text, *longest, "--out", out)
        found = load_file(out)
        assert [tuple(found[name].shape) for name in sorted(found)] == [(4, 16), (3, 16)]
        assert found["0000"].isfinite().all()
