"""Names on the command line become policies, or one sentence that says what is wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir import policies
from weir.config import Config
from weir.core import Capacity, Tier
from weir.errors import ConfigError
from weir.kv.cache import Cache
from weir.sched.aging import Aging, Queued
from weir.sched.composer import Beside, Chunked, Least, Static, Taper
from weir.sched.expression import Expression, parse
from weir.sched.fair import Fair
from weir.sched.names import Knowledge, composer, placement, ranking
from weir.sched.placement import Estimate, Reserve
from weir.sched.prefix import DepthFirst, LongestPrefix
from weir.sched.ranking import FCFS, Feedback
from weir.sched.shortest import Learned, Shortest, Told

CACHE = Cache(1, {Tier.CPU: 1})


def test_policies_nest_and_take_options():
    made = ranking("aging(fair(lpm(limit=3)), threshold=7)", CACHE, Knowledge(weights={"a": 2.0}))
    assert isinstance(made, Aging) and (made.threshold, made.quantum) == (7, 10)
    assert isinstance(made.inner, Fair) and made.inner.weights == {"a": 2.0}
    assert isinstance(made.inner.inner, LongestPrefix) and made.inner.inner.matches.limit == 3


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("fcfs", FCFS),
        ("mlfq(quantum=4, growth=3)", Feedback),
        (" dfs-weight ", DepthFirst),
        ("shortest(preempt=true)", Shortest),
        ("learned", Learned),
        ("queued(fcfs)", Queued),
    ],
)
def test_every_ranking_has_a_name(text, kind):
    assert type(ranking(text, CACHE, Knowledge(scorer=Told()))) is kind


@pytest.mark.parametrize(("scorer", "kind"), [(Told(), Learned), (None, LongestPrefix)])
def test_the_default_orders_by_prediction_only_where_something_predicts(scorer, kind):
    made = ranking("auto", CACHE, Knowledge(scorer=scorer))
    assert isinstance(made, Queued) and isinstance(made.inner, Aging)
    assert isinstance(made.inner.inner, kind)


def test_composers_and_placements():
    assert composer("chunked", Beside(5)) == Chunked(Beside(5))
    tapering = Least((Beside(5), Taper(100, 10)))
    assert composer("chunked(taper(first=100, last=10), tile=64)", Beside(5)) == Chunked(
        tapering, 64
    )
    assert isinstance(composer("static", Beside(5)), Static)
    assert placement("estimate(initial=0.5)", Tier.CPU) == Estimate(Tier.CPU, initial=0.5)
    assert placement("reserve", Tier.CPU) == Reserve(Tier.CPU)


def test_a_learned_order_needs_a_ranker():
    policies.check(Config(scheduling_policy="aging(learned)"))
    with pytest.raises(ConfigError, match="learned needs a ranker"):
        policies.check(Config(scheduling_policy="aging(learned)", ranker="none"))


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("scheduling_policy", "sjf", "no sjf; there is fcfs, lpm"),
        ("scheduling_policy", "aging(sjf)", "no sjf; there is fcfs, lpm"),
        ("scheduling_policy", "aging", "around one policy in brackets, got 0"),
        ("scheduling_policy", "fair(fcfs, lpm)", "around one policy in brackets, got 2"),
        ("scheduling_policy", "lpm(fcfs)", "lpm takes no policy in brackets, got 1"),
        ("scheduling_policy", "aging(fcfs, after=9)", "no option after; its options: patience"),
        (
            "scheduling_policy",
            "aging(fcfs, threshold=0)",
            "aging(threshold=0): expected `int` >= 1",
        ),
        ("scheduling_policy", "shortest(preempt=often)", "expected `bool`"),
        ("scheduling_policy", "aging(fcfs", "closing bracket is missing"),
        ("scheduling_policy", "fcfs)", "goes on after its end"),
        ("scheduling_policy", "aging(,)", "name of a policy is missing"),
        ("scheduling_policy", "fcfs!", "makes no sense from '!' on"),
        ("composer", "sarathi", "no sarathi; there is chunked, whole"),
        ("composer", "chunked(fast)", "no fast; there is taper"),
        ("memory_policy", "swap", "no swap; there is on-demand, reserve"),
        ("memory_policy", "estimate(least=2)", "estimate(least=2): expected `float` <= 1.0"),
        ("tenant_weights", ["a"], "expected name=weight with a weight above 0, got 'a'"),
        ("tenant_weights", ["a=-1"], "expected name=weight with a weight above 0, got 'a=-1'"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(field, text, says):
    with pytest.raises(ConfigError) as caught:
        policies.check(Config(**{field: text}))
    assert says in str(caught.value)
    assert str(caught.value).startswith("--" + field.replace("_", "-"))


def test_a_composer_of_whole_prompts_gets_the_budget_of_a_context():
    assert policies.step_tokens(Config(), 64, 1000) == 64
    for name in ("whole", "prefill-first", "static"):
        assert policies.step_tokens(Config(composer=name), 64, 1000) == 1000
    made = policies.scheduler(Config(composer="whole"), Capacity(1, {1: 9}, 9, 9, 9), Beside(1))
    assert made.composer.whole


NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True)
EXPRESSIONS = st.recursive(
    st.builds(Expression, st.just("x"), NAMES),
    lambda inner: st.builds(
        Expression,
        st.just("x"),
        NAMES,
        st.lists(inner, max_size=3),
        st.dictionaries(NAMES, st.from_regex(r"[a-z0-9.+-]{1,4}", fullmatch=True), max_size=3),
    ),
    max_leaves=6,
)


def written(e: Expression) -> str:
    arguments = [*map(written, e.inner), *(f"{k} = {v}" for k, v in e.options.items())]
    return f"{e.name}({', '.join(arguments)})" if arguments else e.name


@given(EXPRESSIONS)
def test_what_is_written_is_read(e):
    assert parse(written(e), "x") == e


@given(st.text(alphabet="ab(),= 1", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        assert parse(written(parse(text, "x")), "x") == parse(text, "x")
    except ConfigError as error:
        assert str(error).startswith("x: ")
