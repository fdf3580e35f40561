"""HTML that is one file: no scripts, nothing from elsewhere, and no text but escaped text.

A page is made of `Markup`. Every other text is escaped where it enters, so that what a file says
is shown and never obeyed; a policy in the page's head tells the browser the same.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence

from dnnlib.console import escaped

LONGEST = 2000   # characters of a text of a file

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2em auto;
  max-width: 1200px; padding: 0 1em }
h1 { font-size: 1.5em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd }
h3 { font-size: 1em; margin-bottom: .3em }
table { border-collapse: collapse; font-size: .9em; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .2em .8em .2em 0; text-align: left;
  vertical-align: top; overflow-wrap: anywhere; min-width: 4em }
.row { display: flex; flex-wrap: wrap; gap: 1em }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 1em }
figure { margin: 0 0 1em } figcaption { font-size: .85em; color: #555; max-width: 60em }
img { max-width: 100%; height: auto }
.grid img { image-rendering: pixelated; max-height: 420px }
.trouble { color: #a00 } .note { color: #555; font-size: .9em }
.key { display: inline-block; width: 1.6em; height: .8em; margin-right: .4em }
"""


class Markup(str):
    """A text that is HTML."""


def text(value: object) -> Markup:
    """Return any value as HTML that shows it; Markup stays what it is."""
    if isinstance(value, Markup):
        return value
    shown = str(value)
    if len(shown) > LONGEST:
        shown = f'{shown[:LONGEST]}...'
    # A page is in UTF-8, which has no halves of pairs.
    shown = escaped(shown).encode('utf-8', 'backslashreplace').decode()
    return Markup(html.escape(shown))


def element(tag: str, *inside: object, **attributes: str) -> Markup:
    """Return an element around its contents; `class_` is the attribute class."""
    told = ''.join(f' {name.rstrip("_")}="{text(value)}"' for name, value in attributes.items())
    if tag in ('img', 'meta'):
        return Markup(f'<{tag}{told}>')
    return Markup(f'<{tag}{told}>{"".join(map(text, inside))}</{tag}>')


def joined(parts: Iterable[Markup]) -> Markup:
    """Return several pieces of HTML as one."""
    return Markup(''.join(parts))


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table."""
    top = element('tr', *(element('th', cell) for cell in head))
    return element('table', element('thead', top), element('tbody', *(
        element('tr', *(element('td', cell) for cell in row)) for row in rows)))


def figure(data: bytes, kind: str, caption: object, about: str) -> Markup:
    """Return a picture within the page; kind is svg+xml or png, `about` says what it shows."""
    source = f'data:image/{kind};base64,{base64.b64encode(data).decode()}'
    image = Markup(f'<img src="{source}" alt="{text(about)}">')   # longer than a text may be
    return element('figure', image, element('figcaption', caption))


def page(title: str, *sections: object) -> bytes:
    """Return a whole page, in UTF-8."""
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
              f"base-uri 'none'; form-action 'none'")
    head = element(
        'head', element('meta', charset='utf-8'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element('meta', name='referrer', content='no-referrer'),
        element('meta', name='viewport', content='width=device-width'),
        element('title', title), Markup(f'<style>{STYLE}</style>'))
    body = element('body', element('h1', title), *sections)
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'.encode()
