"""Pages of a run: self-contained HTML from plain data, no script, no font, no address outside the page.

Text is escaped unless it already is `Html`, so what a model or a user wrote can't become markup:

- `html`: `tag`, `Html` and the macros of `parts.html.jinja`, the only ways markup is made here.
- `colour`: a colour ramp of even lightness, for maps.
- `pictures`: a relevance map over a picture, a picture as a data address, a panel of pictures.
- `tokens`: an answer whose overruled tokens are marked.
- `plots`: values with their intervals, and over steps, as SVG.
- `tables`: a table, and how a value with its interval is written; `comparison`: of methods, from rows in long form.
- `page`: the shell that holds them.
- `answer`: the page of one answer, made of all of these.
"""

from lvlm_guard.report.answer import Looked, Said, answer_page, answer_strip, cost_table
from lvlm_guard.report.colour import ramp
from lvlm_guard.report.comparison import compared, comparison_section, markdown, verdicts
from lvlm_guard.report.html import Html, tag
from lvlm_guard.report.page import note, page, section, write_page
from lvlm_guard.report.pictures import Picture, data_address, overlay, panel, side_by_side
from lvlm_guard.report.plots import Interval, dot_plot, line_plot
from lvlm_guard.report.tables import Cell, number, table, with_interval
from lvlm_guard.report.tokens import TokenMark, legend, token_marks, token_strip

__all__ = [
    "Cell", "Html", "Interval", "Looked", "Picture", "Said", "TokenMark", "answer_page", "answer_strip", "compared",
    "comparison_section", "cost_table", "data_address", "dot_plot", "legend", "line_plot", "markdown", "note",
    "number", "overlay", "page", "panel", "ramp", "section", "side_by_side", "table", "tag", "token_marks",
    "token_strip", "verdicts", "with_interval", "write_page",
]  # fmt: skip
