"""Train an autoregressive prior on a token file of `genkit encode`, and sample new images."""

import argparse
import math
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import genkit
from genkit.images import grid, save_png, to_uint8


class Prior(nn.Module):
    """Predicts each index of rows [B, N] from the previous ones."""

    def __init__(self, codes, length, width=128):
        super().__init__()
        self.code, self.place = nn.Embedding(codes + 1, width), nn.Embedding(length, width)
        self.memory, self.guess = nn.GRU(width, width, batch_first=True), nn.Linear(width, codes)

    def forward(self, before, first=0, state=None):
        places = torch.arange(first, first + before.shape[1])
        seen, state = self.memory(self.code(before) + self.place(places), state)
        return self.guess(seen), state


def bits(prior, rows):
    """The mean bits per index under the prior."""
    before = F.pad(rows[:, :-1], (1, 0), value=prior.guess.out_features)
    return F.cross_entropy(prior(before)[0].flatten(0, 1), rows.flatten()) / math.log(2)


@torch.no_grad()
def draw(prior, number, length):
    """Sampled rows [number, length]."""
    drawn, state = [torch.full((number, 1), prior.guess.out_features)], None
    for place in range(length):
        guess, state = prior(drawn[-1], place, state)
        drawn.append(torch.multinomial(guess[:, 0].softmax(1), 1))
    return torch.cat(drawn[1:], dim=1)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("checkpoint")
parser.add_argument("tokens", type=Path)
parser.add_argument("--out", type=Path, default="drawn.png")
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(0)
tokenizer = genkit.load(args.checkpoint)
tokens = genkit.load_tokens(args.tokens, tokenizer)

# Coarsest level first. Levels are [N, h, w], or [N, h, w, Q] with several codebooks.
indices = tokens.batch(0, len(tokens))
rows = torch.cat([level.flatten(1).long() for level in reversed(indices)], dim=1)
if len(rows) < 2:
    parser.error("the token file needs at least two images, because every tenth is held out")
heldout, rows = rows[::10], rows[torch.arange(len(rows)) % 10 > 0]
prior = Prior(max(tokenizer.codebook_sizes), rows.shape[1])
optimizer = torch.optim.AdamW(prior.parameters(), lr=3e-3)
for _ in range(args.steps):
    optimizer.zero_grad()
    bits(prior, rows[torch.randint(len(rows), (16,))]).backward()
    optimizer.step()
with torch.no_grad():
    cost = bits(prior, heldout) * rows.shape[1]
pixels = indices[0][0].shape[:2].numel() * tokenizer.levels[0].stride ** 2
print(
    f"{len(heldout)} held-out images: {cost / pixels:.3f} bits per pixel, "
    f"{tokenizer.bits_per_pixel:.3f} without the prior"
)

levels, parts = [], draw(prior, 16, rows.shape[1])
for level, size in reversed([*zip(indices, tokenizer.codebook_sizes, strict=True)]):
    part, parts = parts.tensor_split([level[0].numel()], dim=1)
    levels.insert(0, part.clamp(max=size - 1).unflatten(1, level.shape[1:]))
images = to_uint8(tokenizer.decode(levels))
save_png(args.out, grid([images[:8], images[8:]]))
print(f"wrote 16 new images to {args.out}")
