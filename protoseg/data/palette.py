"""Colours of label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Color = tuple[int, int, int]

BACKGROUND_NAMES = frozenset(
    {"background", "_background_", "__background__", "bg", "back", "void", "none", "nothing"}
)
"""What a class is called, in small letters, that is black: an overlay leaves the image there as it is."""

# Okabe and Ito's seven; three that are farthest from all before them to red- and green-blind and other eyes
# alike; then each the farthest, where what the colour-blind see counts half. Black, white and the hatching
# of ignored pixels are kept away from, too. Distances are those of OKLab, colour blindness that of Machado
# et al. 2009; tests/data/test_palette.py finds the table again. Fixed here: a class keeps its colour.
_DEFAULT = """
    e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 960000 0000ff 5a87ff 780096 00e187 d200b4 0f5a4b 875a78
    964be1 875a00 96b487 96ffb4 ff3c69 5a1ed2 ffb4ff 4b4b78 f03cff ff78e1 a5005a d20f1e 87874b b4d200 9678d2
    ff96b4 0fc3b4 ffb478 a52d96 4b784b 4bff78 4bc32d 8796c3 00e1ff b45a96 1e3cb4 c3872d 2dffff b4e1b4 ffe196
    783c3c 693cff d21e69 d296ff b48787 f00f96 f09669 4ba53c b44b4b d2b4e1 ff6969 c3c35a 871ee1 5a5ac3 0f8787
    d25ae1 2d5aa5 872d78 ff3cc3 875ab4 c396d2 ff5a00 78f0d2 ff78a5 0096f0 4bff0f 5a78a5 784b87 e1c3a5 ff8787
    b4b4ff 692d87 a52d2d 693cc3 e1d25a d26969 2da5a5 a55ac3 693c69 c30fd2 1e69f0 5a5a2d 2d6969 ff4b96 3c96b4
    e13c3c 87c3d2 ffd2d2 873ca5 2d3cf0 5a2da5 00b4d2 f01ed2 e14b78 f0c3f0 b43c00 964b5a 960f96 69b44b e1a5c3
    2d00e1 5a8778 0f875a b4e187 ffb4c3 c378e1 7878f0 b43c78 3c7887 a578a5 d2a596 5ae1a5 f096f0 87a578 b45ae1
    69d24b 874b3c a5964b 962d00 b496b4 2d78d2 78ff96 5ae1e1 9696f0 a5d278 4b69a5 96e13c 6900c3 963c69 d2b478
    00e1c3 78692d d23c5a a5692d f00069 7887c3 c33ca5 ff1e00 a500d2 c369b4 a5c396 960069 d23c87 00c396 a5b400
    c3a55a a5a5e1 b4b44b 878700 69c3f0 c3f05a 961e4b b4c32d a5f0f0 b469ff a5f0b4 5a873c f0e178 00d2b4 a53cff
    b4ff5a 78a596 b4e1ff 69b4a5 f0b44b 0fb4ff 9687ff ffb4e1 78b478 00ffc3 7800b4 69c369 5a96d2 b42dc3 4b5a87
    783c5a 3c9696 96002d a578f0 f0963c 875a3c d2f0a5 c3c3f0 d2d296 4bf05a 693c96 2d78f0 5a6987 c35a3c d2e1a5
    e1c387 783cb4 e178c3 5a87d2 e196c3 1e87b4 f04bb4 d28787 c3f087 c36987 e15a5a 96962d 69d2ff a52d4b 873ce1
    b43c96 3ca5f0 873c1e b4d2b4 0087e1 5a4b87 3c5ad2 b4784b 3c8796 a55a78 00ffe1 d2e169 96b4d2 690fe1 ffa5c3
    a50f2d 4bd2e1 c31e3c d287ff 005af0 f0a569 b400a5 1e963c 78f0a5 f096a5 78782d 3c00f0 8778c3 96a51e e1d200
    4bc3c3 87e1f0 0fa5c3 e15ad2 2da51e b44bff c30069 b46969 5ab469 871e4b c3f0c3 ff4be1 96695a 4b1eff b4d25a
"""  # fmt: skip


def default_palette(names: Sequence[str], given: Mapping[str, Color] | None = None) -> list[Color]:
    """Colours for classes that have none: none is black or nearly so, but for a background.

    The first ten differ for the colour-blind, too; a colour depends on the place of its class alone, and on
    ``given`` ones that it would resemble.

    Args:
        names: Names by class id, at most 255.
        given: Colours, RGB in [0, 255], that classes have already; they stay.
    """
    given = given or {}
    taken = [given[name] for name in names if name in given]
    background = next(
        (name for name in names if name.lower() in BACKGROUND_NAMES and name not in given), None
    )
    table = [(int(word[:2], 16), int(word[2:4], 16), int(word[4:], 16)) for word in _DEFAULT.split()]
    # what resembles a given colour comes last
    table.sort(key=lambda color: any(_near(color, other) for other in taken))
    free = iter(table)
    return [
        given[name] if name in given else (0, 0, 0) if name == background else next(free) for name in names
    ]


def _near(one: Color, other: Color) -> bool:
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) < 40


def voc_palette(count: int) -> list[Color]:
    """The first ``count`` (at most 256) colours of the VOC palette, RGB in [0, 255]."""
    colors = []
    for index in range(count):
        r = g = b = 0
        for bit in range(8):
            low = index >> (3 * bit)
            r |= (low & 1) << (7 - bit)
            g |= ((low >> 1) & 1) << (7 - bit)
            b |= ((low >> 2) & 1) << (7 - bit)
        colors.append((r, g, b))
    return colors
