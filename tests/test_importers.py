"""Other projects' tokenizers: golden files, recognition, what is refused, the command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import genkit_here
from safetensors.torch import load_file, save_file
from torch import Tensor

import genkit
from genkit import testing
from genkit.errors import GenkitError
from genkit.importing import import_model, recognise
from genkit.plugin.registry import registry
from genkit.settings import choose

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = {
    "taming-vq": "taming",
    "taming-gumbel": "gumbel",
    "diffusers-vqmodel": "diffusers",
    "diffusers-vqmodel-amused": "diffusers",
    "llamagen": "llamagen",
    "seed-voken-ibq": "taming",
    "seed-voken-magvit2": "open-magvit2",
    "simvq": "simvq",
    "maskgit-vqgan": "maskgit",
}
UNIT = ("diffusers-vqmodel-amused", "maskgit-vqgan")


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors agree to 1e-5 of the largest expected value."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@torch.no_grad()
def check(tokenizer: genkit.Tokenizer, name: str) -> None:
    expected = load_file(GOLDEN / name / "expected.safetensors")
    signed = (lambda x: 2 * x - 1) if name in UNIT else (lambda x: x)
    latents = tokenizer.encoder(signed(expected["images"]))
    assert torch.equal(tokenizer.quantize(latents)[0].indices, expected["indices"])
    quantizer: Any = tokenizer.quantizers[0]
    between = getattr(quantizer, "enter", torch.nn.Identity())(latents[0])
    # Bits count from the other end here.
    between = between.flip(1) if name == "seed-voken-magvit2" else between
    assert close(between, expected["latents"])
    images = tokenizer.decoder([quantizer.decode(expected["indices"])])
    assert close(images, signed(expected["reconstruction"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_golden_files(name: str, tmp_path: Path) -> None:
    source = GOLDEN / name / "checkpoint.safetensors"
    assert recognise(source).family == FAMILIES[name]
    check(genkit.load(import_model(source, tmp_path / "out")), name)


@pytest.mark.parametrize("name", FAMILIES)
def test_importers_satisfy_their_contract(name: str) -> None:
    testing.check_importer(FAMILIES[name], GOLDEN / name, unit=name in UNIT)


def test_the_contract_finds_wrong_indices_images_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN / "taming-vq", folder)
    with pytest.raises(AssertionError, match="cannot be imported as a file"):
        testing.check_importer("llamagen", folder)
    # Copies: the tensors of a file may be mapped from it, and the file is written anew.
    tensors = load_file(folder / "expected.safetensors")
    expected = {name: value.clone() for name, value in tensors.items()}
    for key, message in (
        ("indices", "all indices must be equal"),
        ("reconstruction", "images must"),
    ):
        wrong = {**expected, key: expected[key].flip(0)}
        save_file(wrong, folder / "expected.safetensors")
        with pytest.raises(AssertionError, match=message):
            testing.check_importer("taming", folder)


def test_old_names_of_attention_in_diffusers(tmp_path: Path) -> None:
    source = GOLDEN / "diffusers-vqmodel" / "checkpoint-old-names.safetensors"
    tokenizer = import_model(source, tmp_path, config=source.with_name("config.json"))
    check(genkit.load(tokenizer), "diffusers-vqmodel")


def moved(name: str, folder: Path, rename: Callable[[str], str]) -> Path:
    """A copy of a golden file under other names."""
    source = GOLDEN / name
    tensors = load_file(source / "checkpoint.safetensors")
    folder.mkdir()
    save_file({rename(key): value for key, value in tensors.items()}, folder / "x.safetensors")
    shutil.copy(source / "config.json", folder)
    return folder


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "prefix", ["module.", "state_dict.", "first_stage_model.", "model.vqmodel.", "ema."]
)
def test_what_stands_before_the_names_does_not_matter(
    name: str, prefix: str, tmp_path: Path
) -> None:
    folder = moved(name, tmp_path / "in", lambda key: f"{prefix}{key}")
    assert recognise(folder).family == FAMILIES[name]
    check(recognise(folder).tokenizer, name)


def test_averaged_weights_are_taken_where_a_file_has_several(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "llamagen" / "checkpoint.safetensors")
    both = {f"ema.{key}": value.float() for key, value in tensors.items()}
    both |= {f"model.{key}": value.float() + 1 for key, value in tensors.items()}
    save_file(both, tmp_path / "x.safetensors")
    check(recognise(tmp_path).tokenizer, "llamagen")


def test_a_tokenizer_in_the_shards_of_a_whole_model(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "taming-vq" / "checkpoint.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({f"model.vqmodel.{name}": tensors[name] for name in held}, tmp_path / file)
    # This shard does not exist: nothing of the tokenizer is in it.
    table = {"lm_head.weight": "c.safetensors"}
    table |= {f"model.vqmodel.{name}": file for file, held in shards.items() for name in held}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    check(recognise(tmp_path).tokenizer, "taming-vq")
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(GenkitError, match=r"b\.safetensors' does not exist, though the index"):
        recognise(tmp_path)


def test_the_file_says_where_it_came_from(tmp_path: Path) -> None:
    import_model(GOLDEN / "taming-vq" / "checkpoint.safetensors", tmp_path)
    training = genkit.inspect(tmp_path)["training"]
    assert training["resolution"] == 16
    imported = training["imported"]
    assert imported["family"] == "taming"
    assert imported["licence"] == "MIT"
    assert imported["source"] == "checkpoint.safetensors"
    assert len(imported["sha256"]) == 64


def test_ibq_is_told_by_its_configuration_or_a_flag(tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    shutil.copy(GOLDEN / "seed-voken-ibq" / "checkpoint.safetensors", source)
    expected = load_file(GOLDEN / "seed-voken-ibq" / "expected.safetensors")

    def share(**options: Any) -> float:
        tokenizer = recognise(source, options=options).tokenizer
        same = tokenizer.encode(expected["images"].clamp(-1, 1))[0] == expected["indices"]
        return float(same.float().mean())

    assert share() < 0.8
    assert share(codes="product") == 1


def test_other_readings_of_a_file_are_measured() -> None:
    source = GOLDEN / "seed-voken-ibq" / "checkpoint.safetensors"
    readings = recognise(source).readings("faces", 2)
    assert [reading.flag for reading in readings] == ["", "--image-range unit", "--codes nearest"]
    assert len({round(reading.psnr, 3) for reading in readings}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"a.weight": torch.ones(2)}, "is of no known family: its tensors are a.weight"),
        (
            lambda t: {k: v for k, v in t.items() if k != "decoder.norm_out.weight"},
            "lacks|do not fit the network",
        ),
        (
            lambda t: {k: v for k, v in t.items() if k != "encoder.conv_out.weight"},
            "lacks the tensor 'encoder.conv_out.weight'",
        ),
        (
            lambda t: {k: v for k, v in t.items() if not k.startswith("encoder.down.0.block")},
            r"different numbers of blocks per level: \[0, 1\]",
        ),
        (
            lambda t: t | {"encoder.conv_in.weight": torch.ones(9, 3, 3, 3)},
            "other channels than its first level",
        ),
        (
            lambda t: t | {"quantize.embedding.weight": torch.ones(64, 5)},
            "do not fit the network that their names describe",
        ),
        (
            lambda t: t | {"encoder.down.0.extra.weight": torch.ones(2)},
            r"belong to no part that is known, first 'encoder\.down\.0\.extra\.weight'",
        ),
        (
            lambda t: t | {"quantize.used": torch.arange(8)},
            r"belong to no part that is known, first 'quantize\.used'",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    tensors = load_file(GOLDEN / "taming-vq" / "checkpoint.safetensors")
    save_file(change({k: v.float() for k, v in tensors.items()}), tmp_path / "x.safetensors")
    with pytest.raises(GenkitError, match=message):
        import_model(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GenkitError, match="does not exist: name a file with weights"):
        recognise(tmp_path / "missing.ckpt")
    with pytest.raises(GenkitError, match="but it holds none"):
        recognise(tmp_path)
    with pytest.raises(GenkitError, match="it holds several: checkpoint"):
        recognise(GOLDEN / "taming-vq")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(GenkitError, match="is damaged"):
        recognise(tmp_path)
    with pytest.raises(GenkitError, match="There is no importer 'tamimg'"):
        recognise(GOLDEN / "taming-vq" / "checkpoint.safetensors", family="tamimg")
    with pytest.raises(GenkitError, match="is not empty: choose another --out"):
        import_model(GOLDEN / "taming-vq" / "checkpoint.safetensors", tmp_path)


def test_a_tokenizer_without_a_decoder_encodes_alone(tmp_path: Path) -> None:
    tensors = load_file(GOLDEN / "taming-vq" / "checkpoint.safetensors")
    kept = {k: v.float() for k, v in tensors.items() if not k.startswith("decoder.")}
    save_file(kept, tmp_path / "x.safetensors")
    found = recognise(tmp_path)
    assert (found.family, found.can_decode, found.is_free) == ("chameleon", False, False)
    tokenizer = genkit.load(import_model(tmp_path, tmp_path / "out"))
    expected = load_file(GOLDEN / "taming-vq" / "expected.safetensors")
    indices = tokenizer.encode(expected["images"].clamp(-1, 1))
    assert indices[0].shape == expected["indices"].shape
    with pytest.raises(GenkitError, match="has no decoder"):
        tokenizer.decode(indices)


def test_the_command(tmp_path: Path) -> None:
    source = GOLDEN / "seed-voken-ibq" / "checkpoint.safetensors"
    done = genkit_here("import", source, "--out", tmp_path / "a", "--codes", "nearest")
    assert "Family: taming (by the names of its tensors)." in done.stdout
    assert "code: the nearest one" in done.stdout
    assert "with --codes product" in done.stdout
    assert "a trained tokenizer reaches more than 15 dB" in done.stderr
    done = genkit_here("import", source, "--out", tmp_path / "b", "--check", "none")
    assert "PSNR" not in done.stdout
    assert genkit.inspect(tmp_path / "b")["components"]["encoder"]["name"] == "vqgan"
    done = genkit_here("import", source, "--out", tmp_path / "c", "--family", "maskgit")
    assert done.returncode
    assert "cannot be imported as a file of the family maskgit" in done.stderr


def test_a_prior_over_an_imported_tokenizer_needs_data(tmp_path: Path) -> None:
    start = import_model(GOLDEN / "taming-vq" / "checkpoint.safetensors", tmp_path / "in")
    flags = ["train-prior", start, "--width", "16", "--depth", "1", "--heads", "1", "--steps", "0"]
    done = genkit_here(*flags, "--out", tmp_path / "out")
    assert done.returncode
    assert "does not record its training data: give --data" in done.stderr
    flags += ["--data", "faces", "--shown", "0", "--validation-images", "2"]
    done = genkit_here(*flags, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "faces at 16 px" in done.stdout


def of_family(family: str) -> dict[str, Tensor]:
    """Tensors of a family, made of taming's where no golden file is of it."""
    known = {family: name for name, family in FAMILIES.items()}
    tensors = load_file(GOLDEN / known.get(family, "taming-vq") / "checkpoint.safetensors")
    if family == "chameleon":
        return {key: value for key, value in tensors.items() if not key.startswith("decoder.")}
    if family == "janus":
        other = {"decoder.up.0.": "decoder.up.1.", "decoder.up.1.": "decoder.up.0."}
        return {other.get(key[:13], key[:13]) + key[13:]: value for key, value in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    ("family", "option", "value"),
    [
        (name, option, value)
        for name in registry().names("importer")
        for option, values in {
            "image_range": ("signed", "unit"),
            "codes": ("nearest", "product", "cosine"),
        }.items()
        if hasattr(registry().component("importer", name).config, option)
        for value in values
    ],
)
def test_every_option_of_an_importer_has_an_effect(family: str, option: str, value: str) -> None:
    importer = choose("importer", {"name": family, option: value}).build()
    tensors = of_family(family)
    assert importer.recognises(list(tensors), {})
    settings = importer.convert(tensors, {}).settings
    if option == "image_range":
        assert settings["encoder"]["image_range"] == value
        assert settings["decoder"] == "no-decoder" or settings["decoder"]["image_range"] == value
    else:
        distances = {"nearest": "euclidean", "product": "product", "cosine": "cosine"}
        assert settings["quantizer"]["distance"] == distances[value]
