"""Backgrounds of the training pictures: plain named colours and simple painted scenes, 64x64.

Every background is painted from a random generator, so a name has any number of variants.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
"""Side of a picture, in pixels."""

PAINT = 2 * SIZE
"""Side at which scenes are painted, in pixels; scaling down smooths their edges."""

COLOURS = {
    "red": (205, 38, 38),
    "blue": (40, 80, 200),
    "green": (45, 150, 60),
    "yellow": (245, 215, 60),
    "orange": (240, 135, 35),
    "purple": (125, 60, 165),
    "pink": (245, 160, 195),
    "white": (248, 248, 248),
    "black": (20, 20, 22),
    "grey": (135, 137, 140),
    "brown": (120, 78, 45),
}
"""Named plain backgrounds and their sRGB values."""

Colour = tuple[int, int, int]
Generator = np.random.Generator


def paint_background(name: str, rng: Generator) -> NDArray[np.uint8]:
    """Paint one variant of the named colour or scene: uint8 [SIZE, SIZE, 3]."""
    if name in COLOURS:
        value = np.asarray(COLOURS[name]) + rng.normal(0, 4, 3)
        shade = np.linspace(rng.uniform(-9, 9), rng.uniform(-9, 9), SIZE)[:, None, None]
        return np.broadcast_to(value + shade, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8)
    return SCENES[name](rng)


def _canvas(top: Colour, bottom: Colour, rng: Generator) -> Image.Image:
    """Return a vertical gradient between two slightly varied colours."""
    ramp = np.linspace(0, 1, PAINT)[:, None, None]
    a, b = (np.asarray(c) + rng.normal(0, 5, 3) for c in (top, bottom))
    pixels = (a * (1 - ramp) + b * ramp).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (PAINT, PAINT, 3))))


def _finish(image: Image.Image) -> NDArray[np.uint8]:
    image = image.filter(ImageFilter.GaussianBlur(0.8))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def _vary(colour: Colour, rng: Generator, spread: float = 7) -> Colour:
    r, g, b = (np.asarray(colour) + rng.normal(0, spread)).clip(0, 255).astype(int).tolist()
    return r, g, b


def _ground(draw: ImageDraw.ImageDraw, level: float, colour: Colour) -> None:
    draw.rectangle((0, int(level * PAINT), PAINT, PAINT), fill=colour)


def _clouds(draw: ImageDraw.ImageDraw, rng: Generator, below: float) -> None:
    for x, y in rng.uniform((0, 0), (PAINT, below * PAINT), (3, 2)):
        draw.ellipse((x - 20, y - 6, x + 20, y + 6), fill=(245, 248, 252))
        draw.ellipse((x - 10, y - 12, x + 12, y + 4), fill=(245, 248, 252))


def _forest(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((70, 120, 70), (30, 75, 35), rng)
    draw = ImageDraw.Draw(image)
    for x in rng.permutation(np.linspace(0, PAINT, 7)) + rng.uniform(-6, 6, 7):
        draw.rectangle((x - 4, 20, x + 4, PAINT), fill=_vary((80, 55, 35), rng))
        draw.polygon([(x - 18, 66), (x, -10), (x + 18, 66)], fill=_vary((25, 85, 40), rng))
    _ground(draw, 0.86, _vary((55, 65, 30), rng))
    return _finish(image)


def _beach(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((120, 200, 245), (190, 230, 250), rng)
    draw = ImageDraw.Draw(image)
    horizon = rng.uniform(0.35, 0.45)
    _ground(draw, horizon, _vary((30, 130, 190), rng))
    _ground(draw, horizon + 0.2, (235, 245, 245))
    _ground(draw, horizon + 0.23, _vary((238, 214, 150), rng))
    return _finish(image)


def _kitchen(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((240, 232, 212), (232, 222, 200), rng)
    draw = ImageDraw.Draw(image)
    for step in range(0, PAINT, 16):
        draw.line((step, 0, step, PAINT), fill=(205, 196, 178), width=2)
        draw.line((0, step, PAINT, step), fill=(205, 196, 178), width=2)
    shelf = _vary((150, 95, 50), rng)
    draw.rectangle((0, 0, PAINT, int(rng.uniform(14, 24))), fill=shelf)
    _ground(draw, 0.7, _vary((165, 110, 65), rng))
    _ground(draw, 0.75, shelf)
    return _finish(image)


def _snow(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((165, 190, 215), (205, 220, 235), rng)
    draw = ImageDraw.Draw(image)
    _ground(draw, rng.uniform(0.55, 0.65), (248, 250, 253))
    for x, y in rng.uniform(0, PAINT, (45, 2)):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=(255, 255, 255))
    return _finish(image)


def _night(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((8, 10, 38), (28, 32, 80), rng)
    draw = ImageDraw.Draw(image)
    for x, y in rng.uniform(0, PAINT, (30, 2)):
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=(250, 250, 215))
    x, y = rng.choice([14, PAINT - 14]), rng.uniform(12, 20)
    draw.ellipse((x - 10, y - 10, x + 10, y + 10), fill=(250, 245, 200))
    return _finish(image)


def _desert(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((250, 195, 120), (252, 225, 170), rng)
    draw = ImageDraw.Draw(image)
    level = rng.uniform(0.5, 0.6) * PAINT
    for x, colour in zip(
        rng.uniform(0, PAINT, 3), ((215, 150, 80), (205, 135, 65), (222, 160, 92)), strict=True
    ):
        draw.ellipse((x - 90, level, x + 90, level + 150), fill=_vary(colour, rng))
        level += 14
    _ground(draw, 0.88, _vary((215, 150, 80), rng))
    return _finish(image)


def _street(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((170, 195, 215), (200, 210, 220), rng)
    draw = ImageDraw.Draw(image)
    for x in range(-8, PAINT, 24):
        top = rng.uniform(5, 45)
        draw.rectangle((x, top, x + 23, PAINT), fill=_vary((125, 110, 108), rng, 18))
        for wx in (x + 4, x + 14):
            for wy in range(int(top) + 5, 90, 12):
                draw.rectangle((wx, wy, wx + 4, wy + 6), fill=(240, 225, 150))
    _ground(draw, 0.76, (170, 170, 168))
    _ground(draw, 0.8, _vary((75, 76, 80), rng))
    return _finish(image)


def _meadow(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((140, 205, 245), (200, 232, 250), rng)
    draw = ImageDraw.Draw(image)
    level = rng.uniform(0.45, 0.55)
    _ground(draw, level, _vary((105, 185, 70), rng))
    for x, y in rng.uniform((0, (level + 0.05) * PAINT), (PAINT, PAINT), (22, 2)):
        petal = ((250, 240, 90), (250, 250, 250), (240, 120, 150))[rng.integers(3)]
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=petal)
    return _finish(image)


def _sea(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((30, 120, 190), (10, 60, 130), rng)
    draw = ImageDraw.Draw(image)
    for y in np.arange(rng.uniform(4, 14), PAINT, 16).tolist():
        for x in np.arange(rng.uniform(-16, 0), PAINT, 22).tolist():
            draw.arc((x, y, x + 18, y + 10), 20, 160, fill=(130, 195, 230), width=2)
    return _finish(image)


def _living_room(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((190, 140, 125), (180, 130, 115), rng)
    draw = ImageDraw.Draw(image)
    x = rng.choice([4, PAINT - 44])
    draw.rectangle((x, 8, x + 40, 48), fill=(250, 250, 245))
    draw.rectangle((x + 4, 12, x + 36, 44), fill=(165, 210, 235))
    draw.line((x + 20, 8, x + 20, 48), fill=(250, 250, 245), width=4)
    sofa = _vary((95, 70, 120), rng)
    draw.rounded_rectangle((0, 62, PAINT, 104), 14, fill=sofa)
    _ground(draw, 0.8, _vary((140, 95, 60), rng))
    return _finish(image)


def _mountains(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((150, 190, 230), (215, 228, 240), rng)
    draw = ImageDraw.Draw(image)
    for x in rng.permutation(np.array([10.0, 64.0, 118.0])) + rng.uniform(-10, 10, 3):
        y, half = rng.uniform(8, 30), rng.uniform(44, 60)
        draw.polygon([(x - half, 110), (x, y), (x + half, 110)], fill=_vary((105, 108, 125), rng))
        draw.polygon([(x - half / 4, y + 24), (x, y), (x + half / 4, y + 24)], fill=(248, 250, 252))
    _ground(draw, 0.82, _vary((85, 115, 80), rng))
    return _finish(image)


def _sky(rng: Generator) -> NDArray[np.uint8]:
    image = _canvas((80, 165, 235), (165, 215, 248), rng)
    draw = ImageDraw.Draw(image)
    _clouds(draw, rng, 1.0)
    _clouds(draw, rng, 1.0)
    return _finish(image)


SCENES: dict[str, Callable[[Generator], NDArray[np.uint8]]] = {
    "forest": _forest,
    "beach": _beach,
    "kitchen": _kitchen,
    "snow": _snow,
    "night sky": _night,
    "desert": _desert,
    "street": _street,
    "meadow": _meadow,
    "sea": _sea,
    "living room": _living_room,
    "mountains": _mountains,
    "sky": _sky,
}
"""Functions that paint the named scenes."""

BACKGROUNDS = (*COLOURS, *SCENES)
"""Names of all backgrounds."""
