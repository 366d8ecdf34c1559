"""Colours and SVG clean-up, so that a figure is legible on light and dark paper and may share a page with others."""

from __future__ import annotations

import contextlib
import contextvars
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Placeholders that no figure uses as real colours: the clean-up turns them into the colour of the surrounding text.
INK = "#010203"
MUTED = "#010204"
FAINT = "#010205"
_OPACITY = {INK: None, MUTED: "0.7", FAINT: "0.22"}

BLUE = "#2b7fb3"
ORANGE = "#b9661a"
# Mid-tones after Okabe and Ito: each has at least 3:1 against white and against near-black.
SERIES = ("#6f7a85", "#2b7fb3", "#cf5c12", "#0f9470", "#b8609b", "#8f7a10", "#7c6fd6", "#b84f42")
# The second lets the first, which is often the baseline, be seen below it where both are equal.
DASHES = ("-", (0, (7, 2)), (0, (3.5, 1.5)), "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (9, 4)), (0, (2, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# Equally light, so that white words on them have 4.5:1 and they themselves 3:1 against both papers.
ROLE_COLOURS = {
    "attention.query": "#2877a7",
    "attention.key": "#4770b4",
    "attention.value": "#117b8a",
    "attention.qkv": "#2877a7",
    "attention.output": "#6864c7",
    "cross.query": "#0d7f60",
    "cross.key": "#327c69",
    "cross.value": "#4a7c2a",
    "cross.qkv": "#0d7f60",
    "cross.output": "#297f54",
    "ffn.gate": "#ae4d8e",
    "ffn.up": "#b75210",
    "ffn.down": "#98650e",
    "embedding": "#8959bf",
    "head": "#b84f42",
    "other": "#67717c",
}

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
ET.register_namespace("", _SVG)
ET.register_namespace("xlink", _XLINK)


# What the placeholders become in a PNG, which has no page around it.
_ON_WHITE = {INK: "#1c1f23", MUTED: "#5b636c", FAINT: "#d3d6d9"}
_PNG_DPI = 216


@dataclass(frozen=True)
class Captured:
    """A figure as it went to a page, and as a picture of its own.

    Attributes:
        name: Unique on the page.
        alt: What it shows.
        svg: The SVG text.
        png: PNG on white, three pixels to a CSS pixel.
    """

    name: str
    alt: str
    svg: str
    png: bytes


_CAPTURED: contextvars.ContextVar[list[Captured] | None] = contextvars.ContextVar("captured", default=None)


@contextlib.contextmanager
def capturing() -> Iterator[list[Captured]]:
    """Collect every figure that is drawn inside the block.

    Yields:
        The figures so far, in drawing order.
    """
    found: list[Captured] = []
    token = _CAPTURED.set(found)
    try:
        yield found
    finally:
        _CAPTURED.reset(token)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure whose unit is the CSS pixel: 72 dots an inch make points and pixels the same."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_alpha(0.0)
    return figure


def new_axes(figure: Figure, left: float, bottom: float, right: float, top: float) -> Axes:
    """Add axes with margins in pixels, quiet spines and a faint grid behind the data."""
    width, height = figure.get_size_inches() * 72
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    )
    axes.patch.set_alpha(0.0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=FAINT, labelcolor=MUTED, labelsize=11, length=3, width=1)
    axes.grid(color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def add_legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend along the bottom edge, as many columns as the longest label allows."""
    width, height = figure.get_size_inches() * 72
    figure.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 2 / height),
        ncols=legend_columns(width, labels),
        frameon=False,
        fontsize=11,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.4,
        borderpad=0.1,
    )


def legend_columns(width: float, labels: Sequence[str]) -> int:
    """Return how many legend entries fit side by side."""
    widest = max((len(label) for label in labels), default=1) * 7 + 48
    return max(1, min(len(labels), int(width // widest)))


def legend_height(width: float, labels: Sequence[str]) -> float:
    """Return the height in pixels that ``add_legend`` will need."""
    columns = legend_columns(width, labels)
    return 18 * -(-len(labels) // columns) + 6 if labels else 0


def series_style(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give every recipe a colour, a dash and a marker, so that colour never stands alone."""
    # Each further round of the colours meets other dashes and markers, so that no two of 64 recipes look the same.
    shapes = [number + 3 * (number // len(SERIES)) for number in range(len(names))]
    return {
        name: {
            "color": SERIES[number % len(SERIES)],
            "linestyle": DASHES[shape % len(DASHES)],
            "marker": MARKERS[shape % len(MARKERS)],
        }
        for number, (name, shape) in enumerate(zip(names, shapes, strict=True))
    }


def clip_label(text: str, limit: int = 24) -> str:
    """Shorten a name that would not fit; the tables show it whole."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def to_svg(figure: Figure, name: str, alt: str, tooltips: Mapping[str, str] | None = None) -> str:
    """Render a figure as one ``<svg>`` element for a page.

    Args:
        figure: The figure.
        name: Unique on the page; every identifier in the SVG gets it as a prefix.
        alt: What the figure shows, for those who cannot see it.
        tooltips: Artist ``gid`` to text shown when the pointer rests on it.

    Returns:
        The SVG text: transparent, text kept as text, colours of text and lines taken from the page.
    """
    import matplotlib

    stream = io.StringIO()
    # Dollar signs in names are no mathematics, and a fixed salt makes equal figures equal text.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "tailora", "text.parse_math": False}
    with matplotlib.rc_context(settings):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(stream.getvalue())
    _strip(root)
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "figure"
    text = stream.getvalue()
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    for element in root.iter():
        tip = (tooltips or {}).get(element.get("id") or "")
        _rewrite(element, prefix, used)
        if tip:
            title = ET.Element(f"{{{_SVG}}}title")
            title.text = tip
            element.insert(0, title)
    width, height = (round(side) for side in figure.get_size_inches() * 72)
    root.attrib.pop("version", None)
    root.set("width", str(width))
    root.set("height", str(height))
    root.set("role", "img")
    root.set("aria-label", alt)
    root.set("font-family", "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif")
    svg = ET.tostring(root, encoding="unicode")
    captured = _CAPTURED.get()
    if captured is not None:
        captured.append(Captured(name, alt, svg, _png(figure)))
    return svg


def _png(figure: Figure) -> bytes:
    """Render a figure on white, the placeholder colours replaced; the figure is not used again afterwards."""
    import matplotlib
    from matplotlib.colors import to_hex

    for artist in figure.findobj():
        for part in ("color", "facecolor", "edgecolor", "markeredgecolor", "markerfacecolor"):
            read, write = getattr(artist, f"get_{part}", None), getattr(artist, f"set_{part}", None)
            if read is None or write is None:
                continue
            # Collections answer with one colour per member; the report's figures draw none of their own.
            with contextlib.suppress(ValueError, TypeError):
                found = _ON_WHITE.get(to_hex(read()))
                if found:
                    write(found)
    figure.patch.set_alpha(1.0)
    stream = io.BytesIO()
    with matplotlib.rc_context({"text.parse_math": False}):
        figure.savefig(stream, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    return stream.getvalue()


def _strip(root: ET.Element) -> None:
    """Drop metadata and the style sheet, which would reach every element of the page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _rewrite(element: ET.Element, prefix: str, used: set[str]) -> None:
    """Make identifiers unique on the page, replace placeholder colours and fonts, and drop what says nothing."""
    element.tail = None
    if element.text and not element.text.strip():
        element.text = None
    for key, value in list(element.attrib.items()):
        if key == "id":
            del element.attrib[key]
            if value in used:
                element.set(key, f"{prefix}-{value}")
        elif key == f"{{{_XLINK}}}href":
            # Plain href: the xlink form is deprecated, and inline SVG needs no namespace for it.
            del element.attrib[key]
            element.set("href", f"#{prefix}-{value[1:]}" if value.startswith("#") else value)
        elif key == "style":
            element.set(key, _style(value, prefix))
        elif key == "transform" and value.startswith("rotate(-0 "):
            del element.attrib[key]
        elif key in ("d", "x", "y"):
            element.set(key, re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match.group()):.2f}", value).strip())
        else:
            element.set(key, value.replace("url(#", f"url(#{prefix}-"))


def _style(text: str, prefix: str) -> str:
    parts = []
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key == "font":
            # "bold 11px 'DejaVu Sans', ..." keeps weight and size; the family comes from the page.
            size = re.search(r"[\d.]+px", value)
            parts += ["font-weight: 600"] if "bold" in value or "600" in value.split("px")[0].split() else []
            parts += [f"font-size: {size.group()}"] if size else []
        elif key == "font-family":
            continue
        elif value.lower() in _OPACITY:
            parts.append(f"{key}: currentColor")
            opacity = _OPACITY[value.lower()]
            parts += [f"{key}-opacity: {opacity}"] if opacity and key in ("fill", "stroke") else []
        else:
            parts.append(f"{key}: {value}".replace("url(#", f"url(#{prefix}-"))
    return "; ".join(parts)
