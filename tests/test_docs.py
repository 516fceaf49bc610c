"""What the docs say exists: settings, links, files, tests, commands, flags, routes, metrics."""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from tests import fakes
from tests.settings import reference
from weir import cli
from weir.balance import RoundRobin
from weir.client import Local
from weir.router import Router
from weir.server.app import ENDPOINTS
from weir.server.metrics import Metrics

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples/README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"\bweir ((?:bench |rank )?[a-z][a-z-]*)\b([^`\n#]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]")
FILE = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:py|cpp))`")
TEST = re.compile(r"\btest_\w+\b(?!\.py)")
SCRIPT = re.compile(r"\bpython (bench/\w+\.py)([^`\n]*)")
ROUTE = re.compile(r"`(?:(?:GET|POST) )?(/[a-zA-Z0-9_/.]+)[^`]*`")
METRIC = re.compile(r"\bweir_[a-z_]+[a-z]\b(?!,)")
NAMES_OF_FILES = {"weir_choices", "weir_gsm8k"}  # tasks of lm-eval

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def commands() -> dict[str, set[str]]:
    """Every command's flags."""
    groups = (
        ("", "weir.cli", cli.COMMANDS),
        ("bench ", "weir.bench", cli.BENCHMARKS),
        ("rank ", "weir.cli.rank", cli.RANKING),
    )
    found: dict[str, set[str]] = {"bench": set(), "rank": set()}
    for prefix, package, names in groups:
        for name in names.keys() - found.keys():
            command = import_module(f"{package}.{name.replace('-', '_')}")
            actions = cli.parser(command, name)._actions
            found[prefix + name] = {word for action in actions for word in action.option_strings}
    return found


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_setting_is_in_the_reference() -> None:
    page = ROOT / "docs/settings.md"
    again = "a setting changed: python -m tests.settings > docs/settings.md"
    assert page.read_text() == reference(), again


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@by_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in FILE.findall(text):
        assert any((folder / name).exists() for folder in (ROOT, ROOT / "weir", page.parent)), name
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert set(TEST.findall(text)) <= set(re.findall(r"def (test_\w+)", sources))


def test_lines_to_read_are_about_as_many_as_said() -> None:
    """Within 5 %, of the files that each row of the reading list links to, and of all."""
    text = (ROOT / "docs/design.md").read_text()
    total, actual = re.search(r"some ([\d,]+) lines", text), 0
    rows = re.findall(r"^\| [^|]+ \| ([\d,]+) \| (.*) \|$", text, re.M)
    assert total and rows
    for said, files in rows:
        lines = 0
        for name in LINK.findall(files):
            lines += (ROOT / "docs" / name).read_text().count("\n")
        assert int(said.replace(",", "")) == pytest.approx(lines, rel=0.05), files
        actual += lines
    assert int(total[1].replace(",", "")) == pytest.approx(actual, rel=0.05)


def test_every_page_can_be_found_from_the_readme() -> None:
    seen, ahead = set(), [PAGES[0]]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        links = (page.parent / link.partition("#")[0] for link in LINK.findall(page.read_text()))
        ahead += [link.resolve() for link in links if link.resolve() in set(PAGES) - seen]
    assert seen == set(PAGES)


@by_page
def test_commands_have_the_flags_they_are_shown_with(page: Path) -> None:
    text = re.sub(r" *\\\n +|\"[^\"\n]*\"", " ", page.read_text())
    for name, rest in COMMAND.findall(text):
        if name in ("top", "plan") or name in commands():  # also plain words of a sentence
            assert set(FLAG.findall(rest)) <= commands()[name], f"weir {name}{rest}"
    of_scripts(text)
    scripts = "".join(script.read_text() for script in (ROOT / "bench").glob("*.py"))
    known = set().union(*commands().values(), FLAG.findall(scripts))
    assert set(re.findall(r"`(--[a-z][a-z-]+[a-z])[ `]", text)) <= known


def of_scripts(text: str) -> None:
    for script, rest in SCRIPT.findall(text):
        flags = set(re.findall(r'"(--[a-z0-9-]+)"', (ROOT / script).read_text()))
        assert set(FLAG.findall(rest)) <= flags, f"{script}{rest}"


@pytest.mark.parametrize(
    "script", sorted((ROOT / "bench").glob("*.py")), ids=lambda path: path.stem
)
def test_benchmarks_say_how_they_are_called(script: Path) -> None:
    """`--help` shows it, and the docstring has no flag that does not exist."""
    source = script.read_text()
    if "__main__" in source:
        assert "parse_args(" in source
        of_scripts((ast.get_docstring(ast.parse(source)) or "").replace("[", " "))


@by_page
def test_python_is_python(page: Path) -> None:
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            ast.parse(code)


def test_the_api_page_lists_the_routes_there_are() -> None:
    text = (ROOT / "docs/api.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    shown = {path for row in rows for path in ROUTE.findall(row)}
    paths = {path.partition("{")[0] for e in ENDPOINTS for path in (e.path, *e.aliases)}
    assert shown <= paths
    assert {endpoint.path.partition("{")[0] for endpoint in ENDPOINTS} <= shown


@by_page
def test_metrics_are_published(page: Path) -> None:
    client = Local(fakes.FakeEngine(), fakes.text(), ["m"])
    router = Router(["http://a"], RoundRobin())
    texts = (Metrics(client).text(), bytes(router.answer("/metrics").body))
    published = {name for text in texts for name in re.findall(r"(?m)^# TYPE (\w+)", text.decode())}
    named = set(METRIC.findall(page.read_text())) - NAMES_OF_FILES
    assert {name.removesuffix("_total") for name in named} <= {
        name.removesuffix("_total") for name in published
    }
