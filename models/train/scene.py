"""What is in a picture: things with colours and places, and how the picture is drawn.

A `Picture` is pure description (no pixels): questions.py reads it to ask and answer, render.py draws it. Everything is
drawn from one `random.Random`, so a seed gives the same picture everywhere. Lengths are pixels, y grows downwards.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace

from .vocabulary import COLORS, SHAPES, WORDS, held_out

RGB = tuple[float, float, float]
"""Red, green and blue from 0 to 1."""

TRAIN_STYLES = ["solid", "outline", "framed", "gradient", "pale", "dotted", "cloudy"]
HELD_OUT_STYLE = "hatched"
STYLES = [*TRAIN_STYLES, HELD_OUT_STYLE]

TRAIN_GROUNDS = ["plain", "gradient", "checker", "stripes", "clouds"]
HELD_OUT_GROUND = "weave"
GROUNDS = [*TRAIN_GROUNDS, HELD_OUT_GROUND]


@dataclass
class Thing:
    """One shape or icon. `name` is a shape word or an icon name; `sprite` the number of its drawing."""

    kind: str
    name: str
    color: str
    rgb: RGB
    x: float
    y: float
    radius: float
    size: str = ""
    angle: float = 0.0
    style: str = "solid"
    stroke: float = 3.0
    second: RGB = (0.0, 0.0, 0.0)
    wobble: float = 0.0
    stretch: float = 1.0
    flip: bool = False
    sprite: int = -1
    recolor: tuple[float, ...] = ()


@dataclass
class Print:
    """A printed word or number. `cap` is the height of a capital letter in pixels."""

    text: str
    color: str
    rgb: RGB
    x: float
    y: float
    cap: float
    font: int
    angle: float = 0.0
    spacing: float = 1.0


@dataclass
class Ground:
    """The background. `color` is "" when no single word names it."""

    color: str
    first: RGB
    second: RGB
    kind: str = "plain"
    angle: float = 0.0
    scale: float = 16.0
    seed: int = 0


@dataclass
class Picture:
    width: int
    height: int
    ground: Ground
    things: list[Thing] = field(default_factory=list)
    prints: list[Print] = field(default_factory=list)
    noise: float = 0.0
    blur: float = 0.0
    gain: float = 1.0
    sized: bool = False

    @property
    def shapes(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "shape"]

    @property
    def icons(self) -> list[Thing]:
        return [thing for thing in self.things if thing.kind == "icon"]


@dataclass(frozen=True)
class Kit:
    """What the generator may use: ids of fonts, and per icon name the numbers of its drawings.

    unseen: draw with the style, the background and the words that training never shows.
    """

    fonts: list[int]
    icons: dict[str, list[int]]
    unseen: bool = False
    plain_icons: bool = False


def jitter(rng: random.Random, rgb: tuple[int, int, int], amount: float = 14.0) -> RGB:
    return tuple(min(1.0, max(0.0, (c + rng.uniform(-amount, amount)) / 255)) for c in rgb)  # type: ignore[return-value]


def shade(rng: random.Random, color: str) -> RGB:
    return jitter(rng, rng.choice(COLORS[color]))


def contrast(a: RGB, b: RGB) -> float:
    return math.dist(a, b)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    return tuple(x + (y - x) * t for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def make_ground(rng: random.Random, kit: Kit) -> Ground:
    """White often, another named colour often, else a pale tint without a name."""
    roll = rng.random()
    if roll < 0.35:
        color = "white"
        first = shade(rng, color)
    elif roll < 0.75:
        color = rng.choice(list(COLORS))
        first = shade(rng, color)
    else:
        color = ""
        first = mix((rng.random(), rng.random(), rng.random()), (1.0, 1.0, 1.0), rng.uniform(0.45, 0.9))
    kind = HELD_OUT_GROUND if kit.unseen else rng.choices(TRAIN_GROUNDS, [55, 15, 9, 9, 12])[0]
    second = first
    if kind != "plain":
        target = rng.choice([(1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (rng.random(), rng.random(), rng.random())])
        second = mix(first, target, rng.uniform(0.08, 0.28))
    return Ground(color, first, second, kind, rng.uniform(0, math.pi), rng.uniform(7, 36), rng.randrange(1 << 16))


def pick_color(rng: random.Random, ground: Ground, colors: list[str] | None = None) -> tuple[str, RGB]:
    """A colour word and an RGB that stands out from the background."""
    for _ in range(60):
        color = rng.choice(colors or list(COLORS))
        rgb = shade(rng, color)
        if color != ground.color and min(contrast(rgb, ground.first), contrast(rgb, ground.second)) > 0.33:
            return color, rgb
    color = "black" if sum(ground.first) > 1.5 else "white"
    return color, shade(rng, color)


def dress(rng: random.Random, kit: Kit, thing: Thing, ground: Ground) -> Thing:
    """Choose how a shape is drawn."""
    thing.style = HELD_OUT_STYLE if kit.unseen else rng.choices(TRAIN_STYLES, [28, 14, 17, 11, 10, 10, 10])[0]
    if thing.style == "outline" and thing.name in ("circle", "ring"):
        # The outline of a circle is a ring: no style may turn one shape into another.
        thing.style = "framed"
    thing.stroke = rng.uniform(2.0, 4.0) + 0.06 * thing.radius
    thing.angle = rng.uniform(-0.22, 0.22)
    thing.stretch = rng.uniform(0.95, 1.05)
    if thing.name == "arrow":
        thing.angle = rng.uniform(-math.pi, math.pi)
    if thing.style == "framed":
        frame = rng.choice([(0.05, 0.05, 0.05), mix(thing.rgb, (0, 0, 0), 0.5), (1.0, 1.0, 1.0)])
        thing.second, thing.stroke = frame, 0.6 * thing.stroke
    elif thing.style == "gradient":
        thing.second = mix(thing.rgb, rng.choice([(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]), rng.uniform(0.15, 0.3))
    elif thing.style == "hatched":
        thing.second = mix(thing.rgb, ground.first, 0.8)
    elif thing.style in ("pale", "dotted", "cloudy"):
        # The rim keeps the colour, the inside comes close to the background (or to white or black).
        toward = rng.choice([ground.first, ground.first, ground.first, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)])
        thing.second = mix(thing.rgb, toward, rng.uniform(0.3, 0.7 if thing.style == "pale" else 0.95))
    thing.wobble = rng.uniform(0.0, 0.05) if rng.random() < 0.25 else 0.0
    return thing


def place(rng: random.Random, picture: Picture, radii: list[float]) -> list[tuple[float, float]]:
    """Centres that neither overlap nor touch the border; fewer when the picture is full."""
    spots: list[tuple[float, float, float]] = []
    for radius in radii:
        edge = radius * 1.1 + 3
        for _ in range(120):
            x, y = rng.uniform(edge, picture.width - edge), rng.uniform(edge, picture.height - edge)
            if all(math.hypot(x - a, y - b) > (radius + r) * 1.12 + 3 for a, b, r in spots):
                spots.append((x, y, radius))
                break
        else:
            break
    return [(x, y) for x, y, _ in spots]


def radius_for(rng: random.Random, picture: Picture, count: int, size: str) -> float:
    side = min(picture.width, picture.height) / 224
    if size == "small":
        return rng.uniform(13, 18) * side
    if size == "big":
        return rng.uniform(31, 40 if count > 3 else 46) * side
    low, high = (28, 85) if count == 1 else (22, 46) if count == 2 else (15, 32)
    return rng.uniform(low, high) * side


def add_shapes(rng: random.Random, kit: Kit, picture: Picture, looks: list[tuple[str, str]]) -> None:
    """looks: (colour or "", shape) of each thing to add."""
    picture.sized = len(looks) > 1 and rng.random() < 0.3
    sizes = [rng.choice(["small", "big"]) if picture.sized else "" for _ in looks]
    radii = [radius_for(rng, picture, len(looks), size) for size in sizes]
    # Large ones first: they are the hard ones to place.
    order = sorted(range(len(looks)), key=lambda i: -radii[i])
    spots = place(rng, picture, [radii[i] for i in order])
    same_shade: dict[str, RGB] = {}
    # A full picture has fewer spots than things.
    for i, (x, y) in zip(order, spots, strict=False):
        color, shape = looks[i]
        if color:
            rgb = same_shade.setdefault(color, shade(rng, color))
            if min(contrast(rgb, picture.ground.first), contrast(rgb, picture.ground.second)) < 0.33:
                color, rgb = pick_color(rng, picture.ground)
        else:
            color, rgb = pick_color(rng, picture.ground)
        thing = Thing("shape", shape, color, rgb, x, y, radii[i], sizes[i], sprite=SHAPES.index(shape))
        picture.things.append(dress(rng, kit, thing, picture.ground))
    rng.shuffle(picture.things)


def recolor(rng: random.Random, kit: Kit) -> tuple[float, ...]:
    """How an icon's colours are changed: 3 x 3 matrix, 3 offsets, strength of inner edges, width of the outline.

    Icon sets differ in palette, shading and outlines. Changing those at random while the name stays teaches the form.
    """
    identity = [1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0]
    offset = [0.0, 0.0, 0.0]
    edge = outline = 0.0
    if kit.plain_icons:
        return (*identity, *offset, edge, outline)
    roll = rng.random()
    if roll < 0.45:
        gains = [rng.uniform(0.75, 1.25) for _ in range(3)]
        keep = rng.uniform(0.6, 1.3)
        identity = [gains[r] * (keep * (r == c) + (1 - keep) / 3) for r in range(3) for c in range(3)]
        offset = [rng.uniform(-0.12, 0.12)] * 3
    elif roll < 0.55:
        identity = [1 / 3] * 9
        offset = [rng.uniform(-0.15, 0.15)] * 3
    elif roll < 0.65:
        identity = [rng.uniform(-0.2, 1.0) for _ in range(9)]
        offset = [rng.uniform(-0.2, 0.2) for _ in range(3)]
    elif roll < 0.72:
        # Line drawing: one flat light fill, the edges carry everything.
        level = rng.uniform(0.75, 1.0)
        identity, offset, edge = [0.0] * 9, [level] * 3, 1.0
        outline = rng.uniform(0.02, 0.05)
    if edge == 0.0 and rng.random() < 0.45:
        edge, outline = rng.uniform(0.4, 1.0), rng.uniform(0.01, 0.05)
    return (*identity, *offset, edge, outline)


def add_icon(rng: random.Random, kit: Kit, picture: Picture, name: str, x: float, y: float, radius: float) -> None:
    small = 0.0 if kit.plain_icons else 1.0
    picture.things.append(
        Thing(
            "icon",
            name,
            "",
            (0, 0, 0),
            x,
            y,
            radius,
            angle=rng.gauss(0, 0.12) * small,
            stretch=rng.uniform(0.88, 1.14) if small else 1.0,
            flip=bool(small) and rng.random() < 0.4,
            wobble=rng.uniform(0.0, 0.04) if small and rng.random() < 0.3 else 0.0,
            sprite=rng.choice(kit.icons[name]),
            recolor=recolor(rng, kit),
        )
    )


def add_print(rng: random.Random, kit: Kit, picture: Picture, text: str, x: float, y: float, room: float) -> None:
    """room: pixels of width the text may take."""
    color, rgb = pick_color(rng, picture.ground)
    if contrast(rgb, picture.ground.first) < 0.5:
        color, rgb = pick_color(rng, replace(picture.ground, second=picture.ground.first), ["black", "white", color])
    largest = min(0.26 * picture.height, room / (1.15 * len(text)))
    cap = rng.uniform(max(13.0, 0.45 * largest), max(14.0, largest))
    angle = rng.gauss(0, 0.05) if rng.random() < 0.5 else 0.0
    picture.prints.append(Print(text, color, rgb, x, y, cap, rng.choice(kit.fonts), angle, rng.uniform(0.98, 1.12)))


def random_text(rng: random.Random, kit: Kit, number: bool) -> str:
    """A number of 1 to 4 digits, a word, or (training only, so that letters are learned) a few random letters."""
    if number:
        return "".join(rng.choice("0123456789") for _ in range(rng.choices([1, 2, 3, 4], [3, 4, 3, 2])[0]))
    if kit.unseen:
        word = rng.choice([w for w in WORDS if held_out(w)])
    elif rng.random() < 0.5:
        word = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(1, 7)))
        word = word.lower() if rng.random() < 0.2 else word
    else:
        word = rng.choice(WORDS)
        while held_out(word):
            word = rng.choice(WORDS)
    return rng.choice([word.upper(), word.upper(), word, word.capitalize()])


def blank(rng: random.Random, kit: Kit, width: int = 224, height: int = 224) -> Picture:
    picture = Picture(width, height, make_ground(rng, kit))
    if rng.random() < 0.5:
        picture.noise = rng.uniform(0.0, 0.04)
    if rng.random() < 0.25:
        picture.blur = rng.uniform(0.4, 1.2)
    if rng.random() < 0.4:
        picture.gain = rng.uniform(0.88, 1.08)
    return picture


def shapes_scene(rng: random.Random, kit: Kit, count: int, width: int, height: int) -> Picture:
    picture = blank(rng, kit, width, height)
    pool = rng.sample(SHAPES, rng.randint(min(2, count), min(4, len(SHAPES)))) if count > 1 else SHAPES
    add_shapes(rng, kit, picture, [("", rng.choice(pool)) for _ in range(count)])
    return picture


def count_scene(rng: random.Random, kit: Kit, width: int, height: int) -> Picture:
    """Several of one kind, a few others between them; no more than six in all."""
    picture = blank(rng, kit, width, height)
    total = rng.randint(1, 6)
    alike = rng.randint(1, total)
    shape, other = rng.sample(SHAPES, 2)
    color, _ = pick_color(rng, picture.ground)
    looks = [(color if rng.random() < 0.85 else "", shape) for _ in range(alike)]
    looks += [
        ("" if rng.random() < 0.6 else color, other if rng.random() < 0.7 else rng.choice(SHAPES))
        for _ in range(total - alike)
    ]
    add_shapes(rng, kit, picture, looks)
    return picture


def icon_scene(rng: random.Random, kit: Kit, count: int, width: int, height: int) -> Picture:
    """One icon, or two side by side or one above the other; with one icon sometimes a shape in a corner."""
    picture = blank(rng, kit, width, height)
    side = min(width, height)
    names = rng.sample(list(kit.icons), count)
    if count == 1:
        radius = side * rng.uniform(0.26, 0.5)
        slack_x, slack_y = max(0.0, width / 2 - radius), max(0.0, height / 2 - radius)
        add_icon(
            rng,
            kit,
            picture,
            names[0],
            width / 2 + rng.uniform(-slack_x, slack_x),
            height / 2 + rng.uniform(-slack_y, slack_y),
            radius,
        )
        return picture
    radius = side * rng.uniform(0.19, 0.24)
    across = rng.random() < 0.6
    for name, sign in zip(names, (-1, 1), strict=True):
        dx, dy = (width / 4 * sign, 0.0) if across else (0.0, height / 4 * sign)
        add_icon(
            rng, kit, picture, name, width / 2 + dx + rng.uniform(-4, 4), height / 2 + dy + rng.uniform(-4, 4), radius
        )
    return picture


def mixed_scene(rng: random.Random, kit: Kit, width: int, height: int) -> Picture:
    """An icon on one side, a shape on the other."""
    picture = blank(rng, kit, width, height)
    side = min(width, height)
    sign = rng.choice([-1, 1])
    add_icon(rng, kit, picture, rng.choice(list(kit.icons)), width / 2 + sign * width / 4, height / 2, side * 0.22)
    color, rgb = pick_color(rng, picture.ground)
    shape = rng.choice(SHAPES)
    thing = Thing(
        "shape",
        shape,
        color,
        rgb,
        width / 2 - sign * width / 4,
        height / 2 + rng.uniform(-30, 30),
        side * rng.uniform(0.1, 0.19),
        sprite=SHAPES.index(shape),
    )
    picture.things.append(dress(rng, kit, thing, picture.ground))
    return picture


def print_scene(rng: random.Random, kit: Kit, number: bool, width: int, height: int) -> Picture:
    """A word or a number, a quarter of the time with a shape above or below it."""
    picture = blank(rng, kit, width, height)
    text = random_text(rng, kit, number)
    y = height / 2 + rng.uniform(-0.2, 0.2) * height
    if rng.random() < 0.25:
        above = rng.random() < 0.5
        y = height * (0.3 if above else 0.7)
        color, rgb = pick_color(rng, picture.ground)
        shape = rng.choice(SHAPES)
        thing = Thing(
            "shape",
            shape,
            color,
            rgb,
            width * rng.uniform(0.3, 0.7),
            height * (0.74 if above else 0.26),
            height * rng.uniform(0.09, 0.15),
            sprite=SHAPES.index(shape),
        )
        picture.things.append(dress(rng, kit, thing, picture.ground))
    add_print(rng, kit, picture, text, width / 2 + rng.uniform(-0.05, 0.05) * width, y, width * 0.88)
    return picture


def random_picture(rng: random.Random, kit: Kit, width: int = 224, height: int = 224) -> Picture:
    """The mixture that training sees."""
    roll = rng.random()
    if roll < 0.22:
        return shapes_scene(rng, kit, rng.randint(2, 6), width, height)
    if roll < 0.38:
        return count_scene(rng, kit, width, height)
    if roll < 0.45:
        return shapes_scene(rng, kit, 1, width, height)
    if roll < 0.53:
        return shapes_scene(rng, kit, 2, width, height)
    if roll < 0.70:
        return print_scene(rng, kit, False, width, height)
    if roll < 0.74:
        return print_scene(rng, kit, True, width, height)
    if roll < 0.94:
        return icon_scene(rng, kit, 1, width, height)
    if roll < 0.97:
        return icon_scene(rng, kit, 2, width, height)
    if roll < 0.99:
        return mixed_scene(rng, kit, width, height)
    return blank(rng, kit, width, height)
