"""The target for libFuzzer: `target.py FOLDER CORPUS -runs=N -seed=1`.

The first byte of a case selects how the rest is read: as a config, a command line, a whole file, or
a header that gets a matching length and tensor bytes. An unexpected error or a forbidden event ends
the process.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(
    include=[
        "genkit.checkpoint.metadata",
        "genkit.tokens.dataset",
        "genkit.tokens.files",
        "genkit.tokens.rows",
        "genkit.plugin.options",
        "genkit.run.options",
        "genkit.run.config",
        "genkit_cli.flags",
    ]
):
    from genkit_cli.flags import chosen_flags, dashed, given

    from genkit.checkpoint.inspect import inspect
    from genkit.checkpoint.metadata import read_model, tokenizer_options
    from genkit.run.options import layered, resolve_run
    from genkit.run.toml import read_config
    from genkit.tokens.dataset import load_tokens

from fuzz.watch import recorded

from genkit.errors import GenkitError

LARGEST = 2**20


def fitting(header: bytes) -> bytes:
    """A safetensors file with this header and as many bytes of tensors as it claims."""
    end = 0
    with suppress(ValueError, RecursionError):
        entries = json.loads(header)
        if isinstance(entries, dict):
            for entry in entries.values():
                places = entry.get("data_offsets") if isinstance(entry, dict) else None
                if isinstance(places, list) and len(places) == 2 and type(places[1]) is int:
                    end = max(end, places[1])
    return len(header).to_bytes(8, "little") + header + bytes(min(end, LARGEST))


def model(file: Path) -> None:
    """All reading of a model file that happens before torch is imported."""
    inspect(file)
    tokenizer_options(read_model(file)[0], file)


def config(file: Path) -> None:
    """Read a run's config."""
    resolve_run(layered(None, read_config(file)))


def command(file: Path) -> None:
    """Parse a command line: one argument per line of the file."""
    args = dashed(file.read_text(encoding="utf-8", errors="surrogateescape").split("\n"))
    flags = chosen_flags(args, [], given(args).get("preset"), ["out", "config"])
    for name, value in given(args).items():
        if name in flags.by_name and value is not None and not flags.by_name[name].info.kind:
            flags.by_name[name].parse(value)


def tokens(file: Path) -> None:
    """Read a token file and all that it contains."""
    load_tokens(file).check()


READERS: list[Any] = [config, model, tokens, model, tokens, command]
SHAPED = (1, 2)


def main() -> None:
    """Run the cases given on the command line."""
    file = Path(sys.argv.pop(1)) / "case"

    def case(data: bytes) -> None:
        kind, rest = (data[0] % len(READERS), data[1:]) if data else (0, b"")
        file.write_bytes(fitting(rest) if kind in SHAPED else rest)
        with recorded([file]) as watch, suppress(GenkitError):
            READERS[kind](file)
        if watch.broken:
            raise AssertionError("\n".join(watch.broken))

    atheris.Setup(sys.argv, case)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
