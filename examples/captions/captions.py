"""Turn captions into vectors by a text model, for the option --condition of a prior."""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

import genkit


def text_encoder(folder):
    """The text model in a folder; of an encoder and a decoder, or of text and images, its part."""
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    if hasattr(model, "encoder") and hasattr(model, "decoder"):
        return model.get_encoder()
    return getattr(model, "text_model", model)


@torch.no_grad()
def vectors(model, tokenizer, texts, length):
    """A tensor [T, C] for each text: the last hidden states of its tokens, without padding."""
    words = tokenizer(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    ).to(model.device)
    states = model(words.input_ids, attention_mask=words.attention_mask).last_hidden_state
    # A half takes half the disk space; `genkit` computes in float32.
    return [
        row[real.bool()].half().cpu()
        for row, real in zip(states, words.attention_mask, strict=True)
    ]


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=Path, help="folder of a text model and its tokenizer")
source = parser.add_mutually_exclusive_group(required=True)
source.add_argument("--tokens", type=Path, help="file or folder of genkit encode, with captions")
source.add_argument("--text", nargs="+", help="captions of images to draw")
parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
parser.add_argument("--length", type=int, default=64, help="tokens of a caption at most [64]")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()
if not args.model.is_dir():
    parser.error(f"'{args.model}' is not a folder: download the text model first")
if args.text:
    # Names sort as the texts do, because --condition takes vectors in the order of their names.
    captions = {f"{number:04d}": text for number, text in enumerate(args.text)}
else:
    tokens = genkit.load_tokens(args.tokens)
    # The views of an image have the same name.
    captions = dict(zip(tokens.names, tokens.captions, strict=True))
    if not any(captions.values()):
        parser.error(f"'{args.tokens}' has no captions: put a .txt file beside each image")
model = text_encoder(args.model).to(args.device)
tokenizer = AutoTokenizer.from_pretrained(args.model, local_files_only=True)
names, found = sorted(captions), {}
for start in range(0, len(names), 64):
    batch = names[start : start + 64]
    texts = [captions[name] for name in batch]
    found |= zip(batch, vectors(model, tokenizer, texts, args.length), strict=True)
save_file(found, args.out)
without = sum(not text for text in captions.values())
print(
    f"{len(found)} captions, {without} of them empty, are in {args.out}: "
    f"[T, {model.config.hidden_size}], T at most {max(map(len, found.values()))}"
)
