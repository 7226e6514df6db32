"""A condition is read as it is written, or refused in one sentence that says where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedsvc.evaluation.conditions import CATALOGUE, CHANGED, Condition, parse
from embedsvc.evaluation.metrics import LIST_METRICS
from partitions.errors import ConfigError


def test_the_condition_of_the_docs_is_read() -> None:
    found = parse("recall@20: new - old > 0.002 +- 0.001 at 0.999")
    assert found == Condition("recall", 20, 1.0, -1.0, False, 0.002, 0.001, 0.999)
    assert found.name == "recall@20" and found.needs_old and not found.is_limit


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ndcg@5:new>.5+-.1at.9", Condition("ndcg", 5, 1, 0, False, 0.5, 0.1, 0.9)),
        (
            " map @ 7 : old - new < 0.1 ± 5e-2 at 9.9e-1 ",
            Condition("map", 7, -1, 1, True, 0.1, 0.05, 0.99),
        ),
        (
            "mrr@1: new - 1.02*old > 0 +- 0.01 at 0.99",
            Condition("mrr", 1, 1, -1.02, False, 0, 0.01, 0.99),
        ),
        (
            "mrr@1: -0.5 * old + new > -0.2 +- 0.01 at 0.99",
            Condition("mrr", 1, 1, -0.5, False, -0.2, 0.01, 0.99),
        ),
        (
            "hit_rate@3: new + new - old > 0 +- 1 at 0.5",
            Condition("hit_rate", 3, 2, -1, False, 0, 1, 0.5),
        ),
        ("changed@10 < 0.3", Condition("changed", 10, 1, 0, True, 0.3)),
        ("coverage@20: new > 0.1", Condition("coverage", 20, 1, 0, False, 0.1)),
        ("gini@20: new - old < 0.05", Condition("gini", 20, 1, -1, True, 0.05)),
        (
            "/shop/user/buys/recall@20: new > 0.1 +- 0.1 at 0.9",
            Condition("recall", 20, 1, 0, False, 0.1, 0.1, 0.9, "/shop/user/buys"),
        ),
        (
            "like it: a@b/changed@2 > 0",
            Condition("changed", 2, 1, 0, False, 0, relation="like it: a@b"),
        ),
        (
            "user_auc: new - old > 0 +- 0.01 at 0.99",
            Condition("user_auc", None, 1, -1, False, 0, 0.01, 0.99),
        ),
        (
            "novelty@20: new - 2 * old > 7",
            Condition("novelty", 20, 1, -2, False, 7),
        ),
        (
            "a@b: c/user_auc: new > 0.7 +- 0.01 at 0.99",
            Condition("user_auc", None, 1, 0, False, 0.7, 0.01, 0.99, "a@b: c"),
        ),
        (
            "click/user_auc: new > 0.7 +- 0.01 at 0.99",
            Condition("user_auc", None, 1, 0, False, 0.7, 0.01, 0.99, "click"),
        ),
    ],
)
def test_conditions_are_read_whatever_the_spaces(text: str, wanted: Condition) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "better",
            'The condition "better" names no metric: write it like "recall@20: new - old > '
            '0.002 +- 0.001 at 0.999" or "changed@10 < 0.3".',
        ),
        (
            "recal@20: new > 0 +- 0.1 at 0.9",
            "character 1: recal is not a metric. Did you mean recall?",
        ),
        (
            "buys/ recal@20: new > 0 +- 0.1 at 0.9",
            "character 7: recal is not a metric. Did you mean recall?",
        ),
        ("/recall@20: new > 0 +- 0.1 at 0.9", 'names no relation before its "/": remove it.'),
        (
            "auc: new > 0.7 +- 0.1 at 0.9",
            "AUC is not a mean over users, so no number of them makes it "
            "sure: take user_auc, the mean of each user's own.",
        ),
        ("auc@20: new > 0.7 +- 0.1 at 0.9", "AUC is not a mean over users"),
        (
            "recall: new > 0.1 +- 0.1 at 0.9",
            "character 7: expected @K, such as recall@20, found :.",
        ),
        ("user_auc@3: new > 0.1 +- 0.1 at 0.9", "expected a colon: user_auc has no @K, found @3."),
        (
            "recall@0: new > 0.1 +- 0.1 at 0.9",
            "character 8: expected K, how many places of a list count, 1 or more, found 0.",
        ),
        ("recall@2.5: new > 0.1 +- 0.1 at 0.9", "character 8: expected K"),
        (
            "recall@20 > 0.1 +- 0.1 at 0.9",
            "character 11: expected a colon and what is "
            "compared, such as recall@20: new - old > 0 +- 0.01 at 0.99, found >.",
        ),
        ("gini@20 > 0.1", "a colon and what is compared, such as gini@20: new > 0.1, found >."),
        ("recall@20: knew > 0.1 +- 0.1 at 0.9", "character 12: expected new or old, found knew."),
        ("recall@20: 2 new > 0.1 +- 0.1 at 0.9", 'expected "*" and then new or old, found new.'),
        ("recall@20: new - new > 0.1 +- 0.1 at 0.9", "expected a sum that depends on new or old"),
        (
            "recall@20: new >= 0.1 +- 0.1 at 0.9",
            "character 17: expected the threshold, a number, found =.",
        ),
        ("recall@20: new = 0.1 +- 0.1 at 0.9", "character 16: expected > or <, found =."),
        ("recall@20: new > 1e999 +- 0.1 at 0.9", "expected the threshold, a number, found 1e999."),
        (
            "recall@20: new > 0.1",
            'character 21: expected "+- TOLERANCE at RELIABILITY", such as +- '
            "0.001 at 0.999, found its end.",
        ),
        (
            "recall@20: new > 0.1 +- 0 at 0.9",
            "character 25: expected a tolerance above 0, found 0.",
        ),
        ("recall@20: new > 0.1 +- 0.1", 'expected "at RELIABILITY", found its end.'),
        (
            "recall@20: new > 0.1 +- 0.1 at 99",
            "expected a reliability between 0 and 1, such as 0.999, found 99.",
        ),
        ("recall@20: new > 0.1 +- 0.1 at 0.9%", "character 35: expected the end, found %."),
        ("changed@10: new < 0.1", "expected > or <, such as changed@10 < 0.3, found :."),
        (
            "changed@10 < 0.1 +- 0.01 at 0.9",
            "character 18: expected the end: changed is one number of "
            "all lists, without +- and at, found +-.",
        ),
        (
            "recall@20: new - old > 0.999 +- 0.001 at 0.9",
            "can't pass: what it compares lies between -1 "
            "and 1. Choose another threshold or a smaller tolerance.",
        ),
        ("recall@20: new > 0.1 +- 1e-10 at 0.9", "asks for more users than there are"),
        ("recall@20: new > 0.1 +- 0.1 at 1e-20", "expected a reliability between 0 and 1"),
        ("recall@20: 1e308 * new + 1e308 * old > 1 +- 1 at 0.9", "but they come to 1e+308"),
        ("recall@20: 1e308*new+1e308*new > 1 +- 1 at 0.9", "but they come to inf"),
        ("recall@20: 1e-9 * new > 0 +- 1e-10 at 0.9", "but they come to 1e-09"),
        ("recall@20: new < 0.1 +- 1e308 at 0.9", "can't pass"),
        ("changed@5 < -1", "can't pass: what it compares lies between 0 and 1. Choose another thr"),
        ("changed@5 > 1", "can't pass: what it compares lies between 0 and 1."),
        ("coverage@20: new > 5", "can't pass: what it compares lies between 0 and 1."),
        ("gini@20: new - old < -1", "can't pass: what it compares lies between -1 and 1."),
        ("novelty@20: new < 0", "can't pass: what it compares lies between 0 and inf."),
        ("popularity_lift@20: new < -1", "can't pass: what it compares lies between -1 and inf."),
        (
            "recall@20: new < 0.1 +- 0.2 at 0.9",
            "can't pass: what it compares lies between 0 and 1.",
        ),
    ],
)
def test_what_is_no_condition_is_refused_with_its_place(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(text)
    assert sentence in str(error.value)


factors = st.just(0.0) | st.floats(1e-6, 3) | st.floats(-3, -1e-6)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    limit = draw(st.booleans())
    metric = draw(st.sampled_from([*CATALOGUE, CHANGED] if limit else [*LIST_METRICS, "user_auc"]))
    new, old = draw(st.tuples(factors, factors).filter(any))
    if metric == CHANGED:
        new, old = 1.0, 0.0
    low, high = min(new, 0.0) + min(old, 0.0), max(new, 0.0) + max(old, 0.0)
    return Condition(
        metric,
        None if metric == "user_auc" else draw(st.integers(1, 10**6)),
        new + 0.0,
        old + 0.0,
        draw(st.booleans()),
        (low + high) / 2 + 0.0,
        None if limit else draw(st.floats(1e-8, 0.49)) * (high - low),
        None if limit else draw(st.floats(1e-9, 1 - 1e-9)),
        draw(st.none() | st.text("ab@:/ <é", min_size=1).filter(lambda name: name.strip() == name)),
    )


@given(conditions())
def test_what_a_condition_says_of_itself_is_read_as_itself(condition: Condition) -> None:
    assert parse(str(condition)) == condition
    assert parse(str(condition).replace("+-", "±")) == condition


@given(st.text())
def test_any_text_is_a_condition_or_one_sentence(text: str) -> None:
    try:
        parse(text)
    except ConfigError as error:
        assert str(error).startswith("The condition")
