"""A web page that lists the routes: no script, no external resources, readable on a phone."""

from collections.abc import Sequence
from html import escape

from weir import __version__
from weir.server.endpoint import Endpoint


def page(endpoints: Sequence[Endpoint]) -> str:
    return PAGE.format(
        version=escape(__version__),
        rows="".join(
            f"<tr><td>{' '.join(endpoint.methods)}<td>{_linked(endpoint)}"
            f"<td>{escape(endpoint.summary)}"
            for endpoint in endpoints
        ),
    )


def _linked(endpoint: Endpoint) -> str:
    """The paths of an endpoint. Those a browser can open are links, relative because of proxies."""
    shown = []
    for path in (endpoint.path, *endpoint.aliases):
        name = f"<code>{escape(path.replace(':path}', '}'))}</code>"
        opens = endpoint.methods == ("GET",) and "{" not in path
        shown.append(f'<a href=".{escape(path)}">{name}</a>' if opens else name)
    return " ".join(shown)


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Weir</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto }}
body {{ padding: 0 1rem }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0 }}
tr {{ border-top: 1px solid color-mix(in srgb, currentcolor 20%, transparent) }}
code {{ overflow-wrap: anywhere }}
@media (max-width: 40rem) {{
  tr {{ display: block; padding: .4rem 0 }}
  thead {{ display: none }}
  td {{ display: inline-block; padding-block: 0 }}
  td:last-child {{ display: block }}
}}
</style>
<h1>Weir {version}</h1>
<p>An inference server with OpenAI's API: clients take this address with <code>/v1</code> as their
base URL. Requests and answers in full: <a href="./openapi.json">openapi.json</a>.</p>
<table>
<thead><tr><th>Method<th>Path<th>What it does</thead>
<tbody>{rows}</tbody>
</table>
</html>
"""
