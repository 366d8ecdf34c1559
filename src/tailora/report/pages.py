"""HTML pages from templates: everything escaped but our own figures and style sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailora.errors import UserError
from tailora.report import formats
from tailora.report.groups import short_model
from tailora.report.tables import interval_text, p_text, range_text, seeds_text

CARD_PADDING = 34
"""Pixels that a card of the style sheet adds to the width of its figure."""

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **values: Any) -> str:
    """Fill in a template.

    Args:
        template: File name in the folder of templates.
        values: What it shows; every string is escaped, figures excepted.

    Returns:
        The whole HTML document.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        score=formats.score,
        signed=formats.signed,
        count=formats.count,
        share=formats.share,
        seconds=formats.seconds,
        megabytes=formats.megabytes,
        rate=formats.rate,
        interval=interval_text,
        range=range_text,
        p_text=p_text,
        seeds=seeds_text,
        plural=formats.plural,
        short_model=short_model,
    )
    # Only our own SVG and style sheet are trusted; every string that comes from a run is escaped.
    css = Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def card(title: str, detail: str, svg: str) -> dict[str, Any]:
    """Put a figure of our own on a card.

    Args:
        title: Heading of the card.
        detail: A sentence that explains the figure.
        svg: What a drawing function returned.

    Returns:
        What the template's ``figure`` takes.
    """
    from markupsafe import Markup

    return {"title": title, "detail": detail, "svg": Markup(svg)}


def column_width(cards: list[dict[str, Any]]) -> int:
    """Return the width of a column that holds the widest of these cards, in pixels."""
    return max(int(item["svg"].partition('width="')[2].partition('"')[0]) for item in cards) + CARD_PADDING


def page_path(folder: Path, wanted: str | Path | None) -> Path:
    """Return where the page goes.

    Args:
        folder: What is reported on.
        wanted: The user's choice.

    Returns:
        The path of the page.

    Raises:
        UserError: It is a folder.
    """
    page = Path(wanted) if wanted is not None else folder / "report.html"
    if page.is_dir():
        raise UserError(
            f"report path {str(page)!r} is a folder; give a file name such as {str(page / 'report.html')!r}"
        )
    return page


def check_figures_folder(figures: str | Path | None) -> None:
    """Refuse a folder for figures that is a file, before anything is written."""
    if figures is not None and Path(figures).exists() and not Path(figures).is_dir():
        raise UserError(f"figures folder {str(figures)!r} is a file; give a folder")
