"""Label maps that come by name: what the masks of well-known data sets hold."""

from __future__ import annotations

from protoseg.data.palette import Color, default_palette, voc_palette


def _names(text: str) -> list[str]:
    return text.split(", ")


# trained classes of Cityscapes with the id in *_labelIds.png and the colour in *_color.png
_CITYSCAPES: list[tuple[str, int, Color]] = [
    ("road", 7, (128, 64, 128)), ("sidewalk", 8, (244, 35, 232)), ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)), ("fence", 13, (190, 153, 153)), ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)), ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)), ("terrain", 22, (152, 251, 152)), ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)), ("rider", 25, (255, 0, 0)), ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)), ("bus", 28, (0, 60, 100)), ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)), ("bicycle", 33, (119, 11, 32)),
]  # fmt: skip
_VOC = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, "
    "horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
_ADE20K = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, "
    "house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, "
    "railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, "
    "fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, "
    "stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, "
    "countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, "
    "bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, "
    "airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, "
    "stage, van, ship, fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, "
    "barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, "
    "microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, "
    "traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, "
    "radiator, glass, clock, flag"
)


def known_classes(name: str) -> dict[str, Color]:
    """Colour by class name in the order of the ids, of a built-in map (``BUILT_IN_MAPS``)."""
    if name == "cityscapes":
        return {label: color for label, _, color in _CITYSCAPES}
    if name == "voc":
        return dict(zip(_VOC, voc_palette(len(_VOC)), strict=True))
    return dict(zip(_ADE20K, default_palette(_ADE20K), strict=True))


def known_map(name: str) -> dict[str, str]:
    """A built-in map as ``data.label_map`` would have it: value or colour -> class name or ``ignore``."""
    if name == "ade20k":
        return {"0": "ignore"} | {str(i): label for i, label in enumerate(_ADE20K, start=1)}
    if name == "voc":
        colors = {",".join(map(str, c)): label for c, label in zip(voc_palette(21), _VOC, strict=True)}
        values = {str(i): label for i, label in enumerate(_VOC)}
        return values | {"255": "ignore", "224,224,192": "ignore"} | colors
    ids = {str(value): label for label, value, _ in _CITYSCAPES}
    ignored = {str(value): "ignore" for value in (*range(-1, 34), 255) if str(value) not in ids}
    return ignored | ids
