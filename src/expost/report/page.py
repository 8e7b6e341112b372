"""A report page: one self-contained HTML file of tables, pictures and text, readable without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from expost.results import Table, format_number
from expost.system.files import write_text

__all__ = ["Section", "write_page"]

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .75rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .55rem; text-align: left; border-bottom: 1px solid #8884; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tr.best td { font-weight: 600; }
img { max-width: 100%; height: auto; background: #fff; }
.note { opacity: .75; font-size: .88rem; margin: .2rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .6rem; background: #8881; }
</style></head><body>
<h1>{{ title }}</h1>
{% for section in sections %}
<section>
<h2>{{ section.heading }}</h2>
{% for paragraph in section.text %}<p>{{ paragraph }}</p>{% endfor %}
{% for table in section.tables %}
<table><thead><tr>{% for name in table.columns %}<th{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr>{% for cell in row %}<td{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% for note in table.notes %}<p class="note">{{ note }}</p>{% endfor %}
{% endfor %}
{% for picture in section.pictures %}<p><img alt="{{ picture.name }}" src="data:image/png;base64,{{ picture.data }}"></p>{% endfor %}
{% if section.code %}<pre>{{ section.code }}</pre>{% endif %}
</section>
{% endfor %}
</body></html>
"""


@dataclass(frozen=True)
class Section:
    """A heading with text, tables, pictures (PNG files) and a block of code or citations."""

    heading: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[str | Path] = ()
    code: str = ""


def write_page(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page; pictures are embedded."""
    from jinja2 import Environment

    template = Environment(autoescape=True).from_string(_TEMPLATE)
    prepared = [
        {
            "heading": section.heading,
            "text": section.text,
            "code": section.code,
            "tables": [
                {
                    "columns": table.columns,
                    "numeric": [all(isinstance(row[i], int | float | None) for row in table.rows) for i in range(len(table.columns))],
                    "rows": [[format_number(cell) for cell in row] for row in table.rows],
                    "notes": table.notes,
                }
                for table in section.tables
            ],
            "pictures": [{"name": Path(p).stem, "data": base64.b64encode(Path(p).read_bytes()).decode()} for p in section.pictures],
        }
        for section in sections
    ]
    write_text(path, template.render(title=title, sections=prepared))
