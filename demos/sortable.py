"""A table as HTML that sorts by a click on a title and tells which row was chosen."""

from __future__ import annotations

import html
from collections.abc import Sequence

CSS = """
.wide { overflow: auto; contain: inline-size; max-height: 440px; border-radius: 8px;
  border: 1px solid var(--border-color-primary) }
table { border-collapse: separate; border-spacing: 0; width: 100%; margin: 0; border: 0;
  padding: 0 }
th, td { padding: 0 .7em; text-align: right; white-space: nowrap; border: 0;
  font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--background-fill-primary) }
thead th { position: sticky; top: 0; z-index: 1; background: var(--background-fill-secondary) }
thead th:first-child { z-index: 2; background: var(--background-fill-secondary) }
tbody td { border-top: 1px solid var(--border-color-primary) }
button { all: unset; cursor: pointer; padding: .5em 0; color: inherit }
th button { font-weight: 600 } th button::after { content: "↕"; opacity: .35; padding-left: .4em }
th[aria-sort="ascending"] button::after { content: "↑"; opacity: 1 }
th[aria-sort="descending"] button::after { content: "↓"; opacity: 1 }
td button { text-decoration: underline dotted; text-underline-offset: 3px }
button:focus-visible { outline: 3px solid var(--color-accent); outline-offset: 1px }
@media (max-width: 640px) {
  th:first-child, td:first-child { white-space: normal; min-width: 8em; max-width: 42vw }
}
"""
# numbers sort as numbers, the largest first; empty cells stay at the end
JS = """
let at = null, way = 'descending';
const titles = () => [...element.querySelectorAll('thead th')];
const sort = () => {
  if (at === null || !titles()[at]) return;
  titles().forEach((title, n) => title.setAttribute('aria-sort', n === at ? way : 'none'));
  const body = element.querySelector('tbody'), sign = way === 'ascending' ? 1 : -1;
  const value = (row) => row.cells[at].dataset.value;
  const rank = (a, b) => {
    if (a === '' || b === '') return (a === '') - (b === '');
    return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  };
  body.append(...[...body.rows].sort((a, b) => rank(value(a), value(b))));
};
element.addEventListener('click', (event) => {
  const title = event.target.closest('th'), row = event.target.closest('td button');
  if (title) {
    const place = titles().indexOf(title);
    way = place === at && way === 'descending' ? 'ascending' : 'descending';
    at = place;
    sort();
  }
  if (row) trigger('choose', { label: row.dataset.label });
});
watch('value', sort);
"""


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table; the first cell of a row is its label, by which it is chosen."""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button>{html.escape(title)}</button></th>'
        for title in titles
    )
    body = []
    for label, *cells in rows:
        name = html.escape(label)
        told = f'<td data-value="{name}"><button data-label="{name}">{name}</button></td>'
        texts = map(html.escape, cells)
        told += "".join(f'<td data-value="{text}">{text}</td>' for text in texts)
        body.append(f"<tr>{told}</tr>")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
