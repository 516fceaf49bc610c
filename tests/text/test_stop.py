"""The stop checker finds what a search over the whole text finds, however the text is cut."""

from hypothesis import given
from hypothesis import strategies as st

from weir.text.stop import StopChecker, _borders

STOPS = st.lists(st.text("abc\n", min_size=1, max_size=5), max_size=5)
DELTAS = st.lists(st.text("abc\n", max_size=6), max_size=12)


def search(text: str, stops: list[str]) -> tuple[int, str] | None:
    """(start, stop) of the stop that ends first, the longest of those that end there."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, _, stop = min(found)
    return end - len(stop), stop


def run(checker: StopChecker, deltas: list[str]) -> tuple[str, str | None]:
    shown = ""
    for delta in deltas:
        text, stop = checker.push(delta)
        shown += text
        if stop is not None:
            return shown, stop
    return shown + checker.finish(), None


@given(stops=STOPS, deltas=DELTAS)
def test_agrees_with_a_search_over_the_joined_text(stops: list[str], deltas: list[str]):
    joined = "".join(deltas)
    expected = search(joined, stops)
    excluded, included = (run(StopChecker(stops, include), deltas) for include in (False, True))
    if expected is None:
        assert excluded == included == (joined, None)
    else:
        start, stop = expected
        assert excluded == (joined[:start], stop)
        assert included == (joined[: start + len(stop)], stop)


@given(stops=STOPS, deltas=DELTAS)
def test_holds_back_no_more_than_it_must(stops: list[str], deltas: list[str]):
    checker, shown, seen = StopChecker(stops), "", ""
    for delta in deltas:
        text, stop = checker.push(delta)
        shown, seen = shown + text, seen + delta
        if stop is not None:
            return
        held = seen.removeprefix(shown)
        assert shown + held == seen
        prefixes = {s[:n] for s in stops for n in range(len(s))} | {""}
        assert held == max((p for p in prefixes if seen.endswith(p)), key=len)


def test_a_suffix_of_one_stop_may_be_another():
    assert run(StopChecker(["xabcd", "bc"]), ["xa", "b", "cd"]) == ("xa", "bc")
    assert run(StopChecker(["abc", "c"]), ["ab", "c"]) == ("", "abc")


def test_after_a_match_nothing_is_left():
    checker = StopChecker(["\n"])
    assert checker.push("one\ntwo") == ("one", "\n")
    assert checker.finish() == ""


def test_no_stops_holds_nothing_back():
    assert StopChecker([]).push("text") == ("text", None)


def test_many_long_stops_hold_back_the_longest_prefix():
    """As many and as long as a request may ask for, and all alike."""
    checker = StopChecker(["a" * (960 + n) + "b" for n in range(64)])
    shown = "".join(checker.push("a")[0] for _ in range(5000))
    assert shown == "a" * (5000 - 1023)


def test_what_a_stop_needs_is_worked_out_once():
    """Not for each of a request's choices: all streams would wait for it."""
    stops = [f"{n}" + "ab" * 500 for n in range(64)]
    before = _borders.cache_info().misses
    for _ in range(128):
        StopChecker(stops)
    assert _borders.cache_info().misses == before + 64
