"""Encode a folder of images with Ray Data, into the Parquet rows that `genkit encode` writes."""

import argparse
import os
from pathlib import Path

import pyarrow.parquet as pq

# Under `uv run`, Ray would build an environment for every worker.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
import ray

import genkit
from genkit.devices import own_device
from genkit.evaluation.images import all_images, resolution_of
from genkit.tokens.engine import Engine
from genkit.tokens.parquet import arrow_table


def open_images(checkpoint, folder):
    """All images of a folder, in a fixed order, at the resolution of the checkpoint."""
    info = genkit.inspect(checkpoint)
    return all_images(folder, resolution_of(info), once=True, model=info)


@ray.remote(num_cpus=0)
class Unreadable:
    """Collects the unreadable images of all workers: reasons by name."""

    def __init__(self):
        self.found = {}

    def add(self, problems):
        self.found |= problems

    def all(self):
        return self.found


class Encoder:
    """A worker. It loads the tokenizer and opens the folder once."""

    def __init__(self, checkpoint, folder, batch_size, unreadable):
        self.split, self.unreadable = open_images(checkpoint, folder), unreadable
        tokenizer = genkit.load(checkpoint).to(own_device())
        self.engine = Engine(tokenizer, self.split, 1, batch_size, 0, "no")
        self.facts = self.engine.table()

    def __call__(self, batch):
        start = int(batch["start"][0])
        rows = range(start, min(start + self.engine.batch_size, self.engine.rows))
        ((encoded, problems),) = self.engine.encode([rows])
        ray.get(self.unreadable.add.remote(self.engine.unreadable | problems))
        return arrow_table(encoded, self.split.classes, self.facts)


def encode(checkpoint, folder, out, workers, batch_size, rows_per_file, encoder=Encoder):
    """Write the indices of all readable images; returns the others with reasons."""
    images, unreadable = len(open_images(checkpoint, folder)), Unreadable.remote()
    # A row stands for a batch, so that batches hold the same images as in `genkit encode`.
    batches = ray.data.from_items([{"start": n} for n in range(0, images, batch_size)])
    encoded = batches.map_batches(
        encoder,
        fn_constructor_args=(checkpoint, folder, batch_size, unreadable),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    # Workers may hold all CPUs. Writing counts for none, so it does not wait until they end.
    encoded.write_parquet(out, min_rows_per_file=rows_per_file, ray_remote_args={"num_cpus": 0})
    return ray.get(unreadable.all.remote())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--out", required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rows-per-file", type=int, default=4096)
    args = parser.parse_args()
    if Path(args.out).exists():
        parser.error(f"'{args.out}' exists already: name another --out, or remove it")
    for name, reason in sorted(encode(**vars(args)).items()):
        print(f"{name} is left out: {reason}")
    print(f"{pq.read_table(args.out, columns=['name']).num_rows} images are in {args.out}")
