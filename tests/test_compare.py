"""Evaluation records, and the comparison table, which refuses records that are not comparable."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import genkit_here, invoke, tiny_run
from genkit_cli.formats import comma_separated, latex, markdown
from PIL import Image

from genkit.errors import GenkitError
from genkit.evaluation.record import differences, read_record


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed than `trained` and larger codebooks."""
    out = tmp_path_factory.mktemp("other") / "run"
    tiny_run(out, {"seed": 1, "steps": 4, "quantizer": {"codebook_size": 32}})
    return out


@pytest.fixture(scope="session")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation record of `trained`."""
    out = tmp_path_factory.mktemp("written") / "a.json"
    code, text = invoke("evaluate", trained, "--out", out)
    assert code == 0
    assert f"The record is in {out}." in text
    return out


Changed = Callable[..., Path]


@pytest.fixture
def changed(written: Path, tmp_path: Path) -> Changed:
    """Writes a copy of the record for another model, with some entries replaced."""

    def change(name: str, **entries: dict[str, Any]) -> Path:
        record = json.loads(written.read_text())
        record["model"]["fingerprint"] = "of another model"
        for key, values in entries.items():
            record[key].update(values)
        file = tmp_path / name
        file.write_text(json.dumps(record))
        return file

    return change


def rows(*args: str | Path) -> list[dict[str, Any]]:
    code, text = invoke("compare", *args, "--json")
    assert code == 0, text
    models: list[dict[str, Any]] = json.loads(text.splitlines()[-1])["models"]
    return models


def test_checkpoints_and_records_share_a_table(trained: Path, other: Path, written: Path) -> None:
    code, text = invoke("compare", written, other)
    assert code == 0
    lines = [line.split() for line in text.splitlines() if " 16 " in line][-2:]
    assert [line[1] for line in lines] == ["16", "16"]
    # Fewer bits are better.
    assert lines[0][2].endswith("*")
    assert not lines[1][2].endswith("*")
    for column in range(2, 9):
        assert any(line[column].endswith("*") for line in lines)
    measured = rows(trained, other / "model.safetensors")
    again = rows(written, other)
    for one, same in zip(measured, again, strict=True):
        assert one["protocol"] == same["protocol"]
        assert one["psnr"] == pytest.approx(same["psnr"], abs=1e-6)
    assert [row["name"] for row in again] == [str(written), str(other)]


def test_differing_options_come_first(trained: Path, other: Path, written: Path) -> None:
    code, text = invoke("compare", trained, other)
    assert code == 0
    table = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert table["seed"] == ["0", "1"]
    assert table["quantizer.codebook-size"] == ["16", "32"]
    assert list(table).index("seed") < list(table).index("model")
    # A model file knows the options of its components, and not of the training.
    code, text = invoke("compare", written, other / "model.safetensors", "--json")
    assert json.loads(text.splitlines()[-1])["differing"] == {
        "encoder.attention": ["pixel", "none"],
        "encoder.attention.dim": [32, None],
        "encoder.attention.norm": ["logn", None],
        "quantizer.codebook-size": [16, 32],
    }


def test_tables_for_papers(trained: Path, other: Path, written: Path) -> None:
    (first, second) = rows(written, other)
    named = "-q", written, other / "model.safetensors"
    code, text = invoke("compare", *named, "--format", "csv")
    assert code == 0
    table = list(csv.DictReader(text.splitlines()))
    assert [row["quantizer.codebook-size"] for row in table] == ["16", "32"]
    assert [float(row["PSNR"]) for row in table] == [first["psnr"], second["psnr"]]
    code, text = invoke("compare", *named, "--format", "markdown")
    lines = text.splitlines()
    assert lines[0].startswith("| model | encoder.attention | ")
    best = f"**{max(first['psnr'], second['psnr']):.3f}**"
    assert sum(best in line for line in lines) == 1
    assert lines[-1] == "Held-out images of faces at 32 px."
    code, text = invoke("compare", *named, "--format", "latex")
    comment, start = text.splitlines()[:2]
    assert comment == "% Held-out images of faces at 32 px. Needs the package booktabs."
    assert start.startswith("\\begin{tabular}{l")
    assert f"\\textbf{{{max(first['psnr'], second['psnr']):.3f}}}" in text
    assert r"\%" in text


def test_cells_that_a_format_would_misread() -> None:
    row = [["a|b_c & 5%"]]
    assert markdown(["x"], row, set()).endswith("| a\\|b_c & 5% |")
    assert r"a|b\_c \& 5\%" in latex(["x"], row, set())
    assert comma_separated(["x", "y"], [["a,b", None]]) == 'x,y\n"a,b",'


def test_json_prints_one_object_and_nothing_else(trained: Path, other: Path) -> None:
    done = genkit_here("compare", trained, other, "--images", "4", "--json", "--anew")
    assert (done.returncode, done.stderr) == (0, "")
    assert {row["images"] for row in json.loads(done.stdout)["models"]} == {4}


def test_different_protocols_are_refused_with_their_differences(
    trained: Path, other: Path, written: Path, photographs: Path, tmp_path: Path
) -> None:
    few, small = tmp_path / "few.json", tmp_path / "small.json"
    assert invoke("evaluate", other, "--images", "5", "--out", few)[0] == 0
    assert invoke("evaluate", other, "--resolution", "16", "--out", small)[0] == 0
    code, text = invoke("compare", written, few)
    assert code == 1
    assert f"{written} and {few} cannot be compared: images asked for not given in" in text
    assert f"images found 16 in {written}, 5 in {few}" in text
    assert text.rstrip().endswith(f"genkit compare {trained} {other} --images N")
    code, text = invoke("compare", written, small)
    assert code == 1
    assert f"resolution 32 in {written}, 16 in {small}" in text
    assert "--resolution N" in text
    code, text = invoke("compare", written, other, "--data", photographs)
    assert code == 1
    assert "data set faces in" in text
    assert "option" not in text
    # Measured on the same images, both can be compared.
    assert len(rows(trained, other, "--data", photographs)) == 2


def test_other_content_of_the_same_names_and_sizes_is_reported(
    trained: Path, other: Path, tmp_path: Path
) -> None:
    """The bitmaps have equal file sizes, so only their pixels differ."""
    folder, records = tmp_path / "images", []
    folder.mkdir()
    for number, model in enumerate((trained, other)):
        Image.new("RGB", (32, 32), (90 * number, 9, 9)).save(folder / "image.bmp")
        records.append(tmp_path / f"{number}.json")
        args = ("--data", folder, "--out", records[-1])
        assert invoke("evaluate", model, *args)[0] == 0
    one, two = (json.loads(record.read_text())["protocol"] for record in records)
    assert one["fingerprint"] == two["fingerprint"]
    code, text = invoke("compare", *records)
    assert code == 1
    assert "compared: hash of the images' pixels" in text


def test_options_that_change_no_pixel_are_ignored(
    trained: Path, other: Path, written: Path
) -> None:
    record = json.loads(written.read_text())["protocol"]
    options = {**record["options"], "size": 7}
    assert differences(record, {**record, "options": options}) == []
    found = differences(record, {**record, "options": options, "pixels": "others"})
    assert found == [("option size", 50_000, 7)]
    # The first 16 held-out faces do not depend on how many there are.
    assert len(rows(trained, other, "--images", "16")) == 2


def test_other_arithmetic_is_refused_and_other_versions_are_noted(
    written: Path, changed: Changed
) -> None:
    code, text = invoke("compare", written, changed("old.json", protocol={"evaluation": 1}))
    assert code == 1
    assert "version of the evaluation's arithmetic 2 in" in text
    newer = changed("newer.json", versions={"torch": "9.9"})
    done = genkit_here("compare", written, newer, "--json")
    assert done.returncode == 0
    assert "Note: measured under different conditions: torch" in done.stderr
    assert f"9.9 in {newer}" in done.stderr
    assert len(json.loads(done.stdout)["models"]) == 2


def test_records_of_older_versions_load_and_compare(written: Path, tmp_path: Path) -> None:
    """Those were measured one image at a time, without recording it."""
    record = json.loads(written.read_text())
    del record["batch_size"]
    record["model"]["fingerprint"] = "of another model"
    older = tmp_path / "older.json"
    older.write_text(json.dumps(record))
    done = genkit_here("compare", written, older)
    assert done.returncode == 0, done.stderr
    assert f"batch size 16 in {written}, 1 in {older}" in done.stderr


FURTHER = {"metric": "x", "label": "X", "better": "lower", "decimals": 1, "unit": "", "options": {}}


def test_a_further_metric_is_a_column_without_its_plugin(written: Path, changed: Changed) -> None:
    """Figures of one metric with different options are refused."""
    one, two, three = (changed(f"{name}.json") for name in "abc")
    for file, value, net in ((one, 1.5, "n"), (two, 2.5, "n"), (three, 2.5, "m")):
        record = json.loads(file.read_text())
        record |= {"x": value, "metrics": {"x": {**FURTHER, "options": {"net": net}}}}
        record["model"]["fingerprint"] = file.name
        file.write_text(json.dumps(record))
    code, text = invoke("compare", one, two, written)
    assert code == 0, text
    lines = [line for line in text.splitlines() if ".json" in line or "MAE/var" in line]
    assert lines[0].split()[7] == "X"
    assert [line.split()[7] for line in lines[1:]] == ["1.5*", "2.5", "-"]
    code, text = invoke("compare", one, three)
    assert code == 1
    assert "the metric x has the options" in text


def test_models_are_named_once(trained: Path, written: Path) -> None:
    assert invoke("compare", trained)[0] == 2
    assert "name two or more" in invoke("compare", trained)[1]
    code, text = invoke("compare", trained, trained)
    assert (code, "is named twice" in text) == (2, True)
    code, text = invoke("compare", written, trained)
    assert code == 1
    assert f"{written} and {trained} are the same model" in text


def test_options_for_checkpoints_are_not_ignored(written: Path, changed: Changed) -> None:
    code, text = invoke("compare", written, changed("b.json"), "--batch-size", "4")
    assert code == 2
    assert "--batch-size applies to checkpoints" in text


DAMAGED = {
    '{"psnr": 1': "damaged or not JSON",
    "\x00\x01": "damaged or not JSON",
    "[" * 100_000: "damaged or not JSON",
    "[1, 2]": "not a record of figures",
    '{"steps": 3}': "not a record of figures",
    '{"psnr": 1, "protocol": {}}': "by an older genkit",
    '{"psnr": 1, "protocol": {}, "schema": 99}': "use a newer genkit",
    '{"psnr": 1, "protocol": {}, "schema": 1}': "it has no usable 'images'",
}


@pytest.mark.parametrize(("text", "message"), DAMAGED.items(), ids=lambda text: text[:30])
def test_damaged_and_foreign_json_is_reported(
    text: str, message: str, written: Path, tmp_path: Path
) -> None:
    file = tmp_path / "b.json"
    file.write_text(text)
    code, told = invoke("compare", written, file)
    assert code == 1
    assert message in told
    assert "--out FILE.json" in told or "newer genkit" in told


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("psnr", float("nan")),
        ("psnr", "13"),
        ("ssim", True),
        ("levels", [{"usage": "much"}]),
        ("levels", [3]),
        ("protocol", {}),
        ("model", {"path": "x"}),
        ("device", None),
        ("metrics", {"x": {**FURTHER, "decimals": "many"}}),
        ("metrics", [FURTHER]),
    ],
)
def test_every_entry_of_a_record_must_be_usable(
    key: str, value: Any, written: Path, tmp_path: Path
) -> None:
    file = tmp_path / "b.json"
    file.write_text(json.dumps({**json.loads(written.read_text()), key: value}))
    with pytest.raises(GenkitError, match=f"no usable '{key}'"):
        read_record(file)


def test_the_figure_of_a_further_metric_must_be_usable(written: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    record = {**json.loads(written.read_text()), "metrics": {"x": FURTHER}, "x": "much"}
    file.write_text(json.dumps(record))
    with pytest.raises(GenkitError, match="no usable 'x'"):
        read_record(file)


def test_a_missing_record_is_reported(trained: Path, tmp_path: Path) -> None:
    code, text = invoke("compare", trained, tmp_path / "none.json")
    assert code == 1
    assert "cannot be read: No such file" in text
