"""The caption of a figure; and drawings, boxes, arrows and words as one SVG in the page's own colours."""

from html import escape
from math import atan2, degrees

FILLS = {"parameters": "#0b6bbd", "attention": "#b34700", "search": "#7a5195", "state": "#2f7d4f"}


def caption(title: str) -> str:
    """HTML of a figure's caption; the book's Sphinx extension writes the number."""
    return f'<figcaption><span class="kl-number"></span>{escape(title)}</figcaption>'


class Drawing:
    """A picture built up in pixels of a phone; words have their baseline at ``y``; a box has a colour of ``FILLS``."""

    def __init__(self, width: float, height: float, title: str, description: str) -> None:
        self.title, self.description = title, description
        self.size, self.parts = f"0 0 {width:g} {height:g}", list[str]()

    def text(self, x: float, y: float, words: str, anchor: str = "middle") -> None:
        self.parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, words: str, fill: str, depth: float = 0.25) -> None:
        ink = f"var(--kl-{fill}, {FILLS[fill]})"
        at = f'x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="2"'
        self.parts.append(f'<rect {at} fill="{ink}" fill-opacity="{depth:.3g}" stroke="{ink}"/>')
        self.text(x + w / 2, y + h / 2 + 4, words)

    def arrow(self, *points: tuple[float, float]) -> None:
        (x, y), (u, v) = points[-1], points[-2]
        line, turn = " L".join(f"{a:g} {b:g}" for a, b in points), degrees(atan2(y - v, x - u))
        head = f'<path d="M-7 -3.5L0 0L-7 3.5Z" transform="translate({x:g} {y:g}) rotate({turn:.4g})"/>'
        self.parts.append(f'<path d="M{line}" fill="none" stroke="currentColor"/>{head}')

    def _repr_html_(self) -> str:
        look = 'font-family="system-ui, sans-serif" font-size="12" fill="currentColor"'
        read = f'viewBox="{self.size}" role="img" aria-label="{escape(self.description)}"'
        svg = f"<svg {read} {look}>{''.join(self.parts)}</svg>"
        return f'<figure class="kl-drawing">{caption(self.title)}{svg}</figure>'
