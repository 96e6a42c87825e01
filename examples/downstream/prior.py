"""Train a prior on your own pictures, draw new ones, and complete one of them."""

import argparse
import math
from pathlib import Path

import genkit
from genkit.completion import half, kept_indices
from genkit.evaluation.images import all_images
from genkit.images import from_pixels, grid, save_png, to_uint8

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("tokenizer")
parser.add_argument("photographs")
parser.add_argument("--run", type=Path, default="runs/prior", help="trained if it does not exist")
parser.add_argument("--out", type=Path, default="drawn.png")
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--width", type=int, default=256)
args = parser.parse_args()
if args.run.exists():
    prior = genkit.load_prior(args.run)
else:
    settings = {"prior": {"name": "autoregressive", "width": args.width}, "steps": args.steps}
    prior = genkit.train_prior(args.tokenizer, settings, data=args.photographs, out=args.run)

# Indices of the pictures that the prior did not learn from, one tensor per level.
tokens = genkit.load_tokens(args.run / "tokens" / "heldout")
nats = prior.nats(tokens.batch(0, len(tokens))).mean().item()
print(
    f"{len(tokens)} held-out images: {nats / math.log(2) / math.prod(prior.size):.3f} bits per "
    f"pixel, {prior.tokenizer.bits_per_pixel:.3f} without the prior"
)
drawn = to_uint8(prior.generate(16, seed=1, top_p=0.95))
picture = all_images(args.photographs, prior.size, once=True).images([0])
kept = kept_indices(prior, from_pixels(picture), half("top", *prior.size))
completed = to_uint8(prior.tokenizer.decode(prior.sample(7, kept=kept)))
save_png(args.out, grid([drawn[:8], drawn[8:], [*picture, *completed]]))
print(f"wrote 16 new images to {args.out}; below them one, and seven completions of its top half")
