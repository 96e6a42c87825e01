"""Procedural colour faces drawn from known factors, as a function of seed and index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from genkit.data.split import Subset
from genkit_datasets import FacesOptions

Array = np.ndarray[Any, Any]

EYE_COLOURS = np.array(
    [(66, 110, 180), (84, 150, 92), (112, 72, 40), (120, 130, 140), (176, 120, 40), (40, 150, 160)]
)
SKIN_COLOURS = np.array(
    [(250, 220, 196), (236, 192, 160), (214, 162, 122), (178, 122, 84), (134, 88, 60), (92, 60, 44)]
)
HAIR_COLOURS = np.array(
    [(30, 26, 28), (82, 54, 34), (140, 92, 48), (214, 176, 104), (170, 70, 36), (168, 168, 172)]
)
CLOTH_COLOURS = np.array(
    [(180, 44, 52), (42, 84, 160), (44, 128, 84), (230, 190, 60), (110, 64, 140), (60, 66, 76)]
)
_CHOICES = {
    "eye_colour": len(EYE_COLOURS),
    "other_eye_colour": len(EYE_COLOURS) - 1,
    "skin": len(SKIN_COLOURS),
    "hair_colour": len(HAIR_COLOURS),
    "hair_length": 4,
    "mouth": 3,
    "glasses": 3,
    "cloth": len(CLOTH_COLOURS),
    "earrings": 3,
}
# Names of the values of each factor that can be the label.
LABELS = {
    "hair": ["bald", "black", "brown", "light brown", "blond", "red", "grey"],
    "glasses": ["none", "round", "square"],
    "mouth": ["smiling", "frowning", "open"],
    "earrings": ["none", "gold", "silver"],
}
_CONTINUOUS = (
    "background_hue",
    "background_slope",
    "face_width",
    "face_height",
    "eye_distance",
    "eye_size",
    "brow",
    "differs",
)
_CONDITIONS = (
    "yaw",
    "tilt",
    "shift_x",
    "shift_y",
    "zoom",
    "light_angle",
    "light",
    "noise_x",
    "noise_y",
)
_TILE = 512


class Faces:
    """Faces with labels.

    The index decides a face's identity. The seed also decides its view: pose, light and noise.
    Identity is symmetric, except with `heterochromia`; pose and light are not. A face fills the
    longer side of its image, and the shorter side shows its middle. Held-out faces have the first
    numbers; training faces follow.
    """

    channels = 3
    generated = True

    def __init__(self, options: FacesOptions, size: tuple[int, int], seed: int) -> None:
        self.options, self.size = options, size
        # Held-out faces come from stream 0, whatever the seed. Training faces come from an odd
        # stream that no other seed has.
        self.stream = 2 * seed + 1
        # The label option does not change images, so it is not part of the fingerprint.
        drawn = {key: value for key, value in vars(options).items() if key != "label"}
        listed = ", ".join(f"{key}={value!r}" for key, value in drawn.items())
        self.fingerprint = f"faces:FacesOptions({listed})"
        self.problems: dict[str, str] = {}
        self.classes = list(LABELS.get(options.label, []))
        self._long = max(size)
        y, x = (_axis(count, self._long) for count in size)
        self._x, self._y = x[None, None, :], y[None, :, None]
        self._pixel = np.float32(2 / self._long)
        self._noise = (
            (_uniform(np.arange(_TILE * _TILE, dtype=np.uint64), 99) - 0.5)
            .reshape(_TILE, _TILE)
            .astype(np.float32)
        )

    def split(self, name: str) -> Subset:
        """Training faces for `train`; otherwise the held-out faces, which depend on no seed."""
        heldout, training = self.options.heldout, self.options.size
        training_faces = range(heldout, heldout + training)
        return Subset(self, training_faces if name == "train" else range(heldout))

    def name(self, number: int) -> str:
        """`face-000012`, numbered separately in the training set and the held-out set."""
        heldout = self.options.heldout
        return f"face-{number if number < heldout else number - heldout:06d}"

    def label(self, number: int) -> int | None:
        """The value of the factor chosen as the label."""
        return int(self.factors([number])[self.options.label][0]) if self.classes else None

    def factors(
        self, numbers: Sequence[int], seeds: Sequence[int] | None = None
    ) -> dict[str, Array]:
        """The factors of faces, each an array `[B]`.

        They describe identity and, under `yaw`, `light`, …, the view. `hair` is 0 for bald, else
        1 + `hair_colour`.
        """
        number, heldout = np.asarray(numbers, dtype=np.uint64), np.uint64(self.options.heldout)
        training = number >= heldout
        index = np.where(training, number - heldout, number)
        stream = np.uint64(self.stream * 0x9E3779B97F4A7C15 % 2**64)
        identity = index * np.uint64(2) + np.where(training, stream, np.uint64(0))
        view = (
            identity
            if seeds is None
            else _mix(identity + _mix(np.asarray(seeds, dtype=np.uint64) + np.uint64(1)))
        )
        values: dict[str, Array] = {}
        for place, (name, count) in enumerate(_CHOICES.items()):
            values[name] = (_uniform(identity, place) * count).astype(np.int64)
        values["hair"] = np.where(values["hair_length"] > 0, values["hair_colour"] + 1, 0)
        for place, name in enumerate(_CONTINUOUS, 20):
            values[name] = _uniform(identity, place)
        for place, name in enumerate(_CONDITIONS, 40):
            values[name] = _uniform(view, place)
        other = (values["eye_colour"] + 1 + values.pop("other_eye_colour")) % len(EYE_COLOURS)
        values["left_eye"] = values.pop("eye_colour")
        values["right_eye"] = np.where(
            values.pop("differs") < self.options.heterochromia, other, values["left_eye"]
        )
        for name in ("yaw", "tilt", "shift_x", "shift_y", "zoom"):
            values[name] = (values[name] * 2 - 1) * self.options.pose
        values["light"] = values["light"] * self.options.light
        return values

    def images(
        self, numbers: Sequence[int], seeds: Sequence[int] | None = None
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Faces uint8 `[B, H, W, 3]`."""
        factors = self.factors(numbers, seeds)
        result = np.empty((len(numbers), *self.size, self.channels), dtype=np.uint8)
        # Draw only as many at a time as fit in the processor's cache.
        at_once = max(1, 2**17 // (self.size[0] * self.size[1]))
        for start in range(0, len(numbers), at_once):
            rows = slice(start, start + at_once)
            result[rows] = self._draw({name: value[rows] for name, value in factors.items()})
        return result

    def regions(
        self, numbers: Sequence[int], seeds: Sequence[int] | None = None
    ) -> dict[str, Array]:
        """Coverage of pixels `[B, H, W]` by the left and right iris, brow and earring, in [0, 1].

        `left_iris` is the person's left, which is on the right of the picture. Occluded pixels do
        not count; a face without earrings has zero coverage for them.
        """
        f = self.factors(numbers, seeds)
        u, v = self._face_coordinates(f)
        turned = self._turned(f, u)
        eyes = self._eye_covers(f, turned, v)
        ring, face = self._head_covers(f, u, v)
        free = 1 - eyes["rim"]
        parts = {
            "iris": (turned, eyes["iris"] * (1 - eyes["pupil"]) * (1 - eyes["glint"]) * free),
            "brow": (turned, eyes["brow"] * free),
            "earring": (u, ring * (1 - face)),
        }
        return {
            f"{which}_{name}": cover * (across > 0 if which == "left" else across < 0)
            for name, (across, cover) in parts.items()
            for which in ("left", "right")
        }

    def _draw(self, f: dict[str, Array]) -> Array:
        canvas = np.empty((len(f["yaw"]), self.channels, *self.size), dtype=np.float32)
        self._background(canvas, f)
        u, v = self._face_coordinates(f)
        self._head(canvas, f, u, v)
        self._eyes(canvas, f, u, v)
        self._nose_and_mouth(canvas, f, u, v)
        self._light(canvas, f)
        return canvas.clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def _background(self, canvas: Array, f: dict[str, Array]) -> None:
        hue = f["background_hue"][:, None] * np.float32(2 * np.pi) + np.array(
            [0, 2.1, 4.2], dtype=np.float32
        )
        colour = (140 + 70 * np.cos(hue)).astype(np.float32)
        slope = 1 + 0.35 * (2 * f["background_slope"] - 1)[:, None, None] * self._y
        canvas[:] = colour[:, :, None, None] * slope[:, None]

    def _face_coordinates(self, f: dict[str, Array]) -> tuple[Array, Array]:
        """Coordinates of pixels `[B, H, W]` in the upright head: u across, v downwards."""
        x = self._x - 0.12 * _at(f["shift_x"])
        y = self._y - 0.08 * _at(f["shift_y"])
        angle, scale = 0.2 * f["tilt"], 1 / (1 + 0.1 * f["zoom"])
        cos, sin = _at(np.cos(angle) * scale), _at(np.sin(angle) * scale)
        return cos * x + sin * y, cos * y - sin * x

    def _head(self, canvas: Array, f: dict[str, Array], u: Array, v: Array) -> None:
        skin = SKIN_COLOURS[f["skin"]].astype(np.float32)
        hair = HAIR_COLOURS[f["hair_colour"]].astype(np.float32)
        width, height = _at(0.46 + 0.08 * f["face_width"]), _at(0.58 + 0.08 * f["face_height"])
        length = _at(np.array([0, 0.1, 0.45, 0.8], dtype=np.float32)[f["hair_length"]])
        has_hair = _at((f["hair_length"] > 0).astype(np.float32))
        side = np.abs(u)
        behind = self._ellipse(
            u / (width + 0.13), (v + 0.12 - length / 2) / (height + 0.04 + length / 2), 0.5
        )
        _paint(canvas, behind * has_hair, hair)
        low = slice(self.size[0] // 2, None)
        shoulders = self._ellipse(u[:, low] / 0.85, (v[:, low] - 1.15) / 0.42, 0.4)
        _paint(canvas[:, :, low], shoulders, CLOTH_COLOURS[f["cloth"]].astype(np.float32))
        neck = self._cover(np.maximum(side[:, low] - 0.17, np.abs(v[:, low] - 0.7) - 0.2))
        _paint(canvas[:, :, low], neck, skin * 0.86)
        _paint(canvas, self._ellipse((side - width) / 0.07, (v - 0.02) / 0.14, 0.07), skin * 0.93)
        ring, face = self._head_covers(f, u, v)
        metal = np.array([[0, 0, 0], [240, 205, 90], [225, 230, 240]], dtype=np.float32)[
            f["earrings"]
        ]
        _paint(canvas, ring, metal)
        _paint(canvas, face, skin)
        top = slice(None, self.size[0] // 2)
        fringe = self._cover(
            v[:, top] + 0.42 * height - 0.25 * (u[:, top] / width) ** 2 * height + 0.06
        )
        _paint(
            canvas[:, :, top],
            fringe
            * self._ellipse(u[:, top] / (width + 0.03), v[:, top] / (height + 0.03), 0.5)
            * has_hair,
            hair,
        )

    def _eyes(self, canvas: Array, f: dict[str, Array], u: Array, v: Array) -> None:
        rows, columns = self._part(0.2, 0.72, 0), self._part(0.08, 0.92, 1)
        u, v = u[:, rows, columns], v[:, rows, columns]
        canvas = canvas[:, :, rows, columns]
        u = self._turned(f, u)
        covers = self._eye_covers(f, u, v)
        black, white = (np.full((len(u), 3), value, dtype=np.float32) for value in (12, 244))
        _paint(canvas, covers["white"], white)
        left, right = (
            EYE_COLOURS[f[name]].astype(np.float32)[:, :, None, None]
            for name in ("left_eye", "right_eye")
        )
        # The person's left eye is on the right of the picture.
        iris = np.where(u[:, None] > 0, left, right)
        _paint_map(canvas, covers["iris"], iris)
        _paint(canvas, covers["pupil"], black)
        _paint(canvas, covers["glint"], np.full((len(u), 3), 255, dtype=np.float32))
        brow = HAIR_COLOURS[f["hair_colour"]].astype(np.float32) * 0.7
        _paint(canvas, covers["brow"], brow)
        _paint(canvas, covers["rim"], np.full((len(u), 3), 30, dtype=np.float32))

    def _turned(self, f: dict[str, Array], u: Array) -> Array:
        """The coordinate u on a turned head, whose far half is foreshortened."""
        u = u - 0.13 * _at(f["yaw"])
        return u * (1 + 0.22 * _at(f["yaw"]) * np.sign(u))

    def _eye_covers(self, f: dict[str, Array], u: Array, v: Array) -> dict[str, Array]:
        """Coverage of pixels `[B, H, W]` by the parts of both eyes, in drawing order.

        `u` is the coordinate on the turned head.
        """
        side = np.abs(u) - _at(0.19 + 0.05 * f["eye_distance"])
        size = _at(0.95 + 0.3 * f["eye_size"])
        white = self._ellipse(side / (0.115 * size), (v + 0.08) / (0.072 * size), 0.07)
        radius = np.sqrt(side**2 + (v + 0.08) ** 2)
        shape = f["glasses"]
        round_rim = np.abs(np.sqrt(side**2 + (v + 0.07) ** 2) - 0.165) - 0.014
        square_rim = np.abs(np.maximum(np.abs(side) - 0.155, np.abs(v + 0.07) - 0.12)) - 0.016
        bridge = np.maximum(np.abs(u) - 0.06, np.abs(v + 0.07) - 0.012)
        rim = np.minimum(
            np.where(_at((shape == 1).astype(np.float32)) > 0, round_rim, square_rim), bridge
        )
        return {
            "white": white,
            "iris": white * self._cover(radius - 0.066 * size),
            "pupil": white * self._cover(radius - 0.028 * size),
            "glint": self._cover(np.sqrt((side + 0.018) ** 2 + (v + 0.1) ** 2) - 0.014),
            "brow": self._ellipse(
                side / 0.13, (v + 0.215 + 0.03 * _at(f["brow"]) + 0.12 * side**2 * 4) / 0.024, 0.024
            ),
            "rim": self._cover(rim) * _at((shape > 0).astype(np.float32)),
        }

    def _head_covers(self, f: dict[str, Array], u: Array, v: Array) -> tuple[Array, Array]:
        """Coverage of pixels `[B, H, W]` by the earrings, and by the face drawn over them."""
        width, height = _at(0.46 + 0.08 * f["face_width"]), _at(0.58 + 0.08 * f["face_height"])
        ring = self._ellipse((np.abs(u) - width - 0.02) / 0.05, (v - 0.2) / 0.05, 0.05)
        worn = _at((f["earrings"] > 0).astype(np.float32))
        return ring * worn, self._ellipse(u / width, v / height, 0.5)

    def _nose_and_mouth(self, canvas: Array, f: dict[str, Array], u: Array, v: Array) -> None:
        rows, columns = self._part(0.42, 0.9, 0), self._part(0.2, 0.8, 1)
        u, v = u[:, rows, columns] - 0.15 * _at(f["yaw"]), v[:, rows, columns]
        canvas = canvas[:, :, rows, columns]
        skin = SKIN_COLOURS[f["skin"]].astype(np.float32)
        _paint(canvas, self._ellipse(u / 0.06, (v - 0.13) / 0.045, 0.045), skin * 0.8)
        mouth = f["mouth"]
        bend = _at(np.array([0.9, -0.7, 0.0], dtype=np.float32)[mouth])
        open_ = _at(np.array([0.034, 0.03, 0.075], dtype=np.float32)[mouth])
        lips = self._ellipse(u / 0.2, (v - 0.36 + bend * (u**2 - 0.016)) / open_, 0.034)
        _paint(canvas, lips, skin * np.array([0.82, 0.42, 0.42], dtype=np.float32))
        inside = self._ellipse(u / 0.15, (v - 0.36) / 0.045, 0.045)
        _paint(
            canvas,
            inside * _at((mouth == 2).astype(np.float32)),
            np.full((len(u), 3), (70, 20, 26), dtype=np.float32),
        )

    def _light(self, canvas: Array, f: dict[str, Array]) -> None:
        angle, strength = f["light_angle"] * np.float32(2 * np.pi), 0.55 * f["light"]
        falloff = (
            1
            + _at(strength * np.cos(angle)) * self._x
            + _at(0.5 * strength * np.sin(angle)) * self._y
        )
        canvas *= np.minimum(falloff, 1.15)[:, None]
        if not self.options.noise:
            return
        height, width = self.size
        down, across = (max(1, _TILE - count) for count in self.size)
        for image, x, y in zip(canvas, f["noise_x"] * across, f["noise_y"] * down, strict=True):
            tile = self._noise[int(y) : int(y) + height, int(x) : int(x) + width]
            image[:, : tile.shape[0], : tile.shape[1]] += 16 * self.options.noise * tile

    def _part(self, first: float, last: float, axis: int) -> slice:
        """The rows or columns between two fractions of the face's square."""
        spare = (self.size[axis] - self._long) / 2
        return slice(*(max(0, int(spare + self._long * share)) for share in (first, last)))

    def _ellipse(self, x: Array, y: Array, radius: float) -> Array:
        """Coverage of pixels by the unit circle in the given coordinates.

        `radius` is its approximate radius on the canvas.
        """
        return self._cover((np.sqrt(x * x + y * y) - 1) * np.float32(radius))

    def _cover(self, distance: Array) -> Array:
        """Coverage of pixels by a shape, from signed distances to its outline (negative inside)."""
        return np.clip(np.float32(0.5) - distance / self._pixel, 0, 1)


def _paint(canvas: Array, cover: Array, colour: Array) -> None:
    """Blend one colour `[B, 3]` per image into canvas `[B, 3, H, W]` by `cover` `[B, H, W]`."""
    _paint_map(canvas, cover, colour[:, :, None, None])


def _paint_map(canvas: Array, cover: Array, colours: Array) -> None:
    canvas += cover[:, None] * (colours - canvas)


def _axis(count: int, long: int) -> Array:
    """Pixel centres, where -1 and 1 are the ends of an axis of `long` pixels."""
    middles = ((np.arange(count, dtype=np.float32) + 0.5) / count * 2 - 1).astype(np.float32)
    return middles * np.float32(count / long)


def _at(values: Array) -> Array:
    return values.astype(np.float32)[:, None, None]


def _mix(values: Array) -> Array:
    """SplitMix64 (Steele et al. 2014): a well-mixed uint64 for each uint64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _uniform(keys: Array, number: int) -> Array:
    """Uniform samples in [0, 1), one per uint64 key, independent for each `number`."""
    return (_mix(_mix(keys) + np.uint64(number)) >> np.uint64(40)).astype(np.float32) / np.float32(
        1 << 24
    )
