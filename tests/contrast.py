"""Contrast of two colours as WCAG 2 defines it; AA asks 4.5 of text, 3 of large text and of graphics."""

AA_TEXT = 4.5

Colour = tuple[float, float, float]
"""Red, green, blue in 0..255."""


def contrast(one: Colour, other: Colour) -> float:
    """Between 1 and 21."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: Colour) -> float:
    parts = [part / 255 for part in colour]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def parse_hex(text: str) -> Colour:
    """`#0b5cad`."""
    red, green, blue = (float(int(text[at : at + 2], 16)) for at in (1, 3, 5))
    return red, green, blue
