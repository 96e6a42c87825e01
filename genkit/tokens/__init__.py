"""Token files: the indices of many images, encoded, stored, read and decoded."""

# Formats of shards, the default first, and of images.
FORMATS = ("safetensors", "parquet")
IMAGE_FORMATS = ("png", "tiff", "npy")
# Images per shard. A killed encoding repeats at most one shard for each process.
SHARD_SIZE = 4096
# Larger images are encoded and decoded by tiles of so many pixels on a side.
TILE = 1024
# The list of a folder's shards, and the plan of an output that has not ended.
INDEX, UNFINISHED = "index.json", "unfinished.json"
# Readers of Parquet folders pass over names with an underscore.
PARQUET_INDEX = f"_{INDEX}"
