"""CURRENT moves only through the gate, each decision leaves a trace, nothing is shown uncounted.

People of one group like what others of it like. A good model says so; a bad one says it of a share
of people only, and the empty one of nobody.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embedsvc.config import GateConfig, ModelConfig, PublishConfig
from embedsvc.evaluation.gate import Decision
from embedsvc.evaluation.list_gate import ListGate, content_of
from embedsvc.publish import publish
from embedsvc.release import conclude, resumed
from embedsvc.release_road import Releases
from embedsvc.trained import Trained
from partitions import published, releases
from partitions.errors import ConfigError, DataError
from partitions.graph import Graph

MakeGraph, MakeTrained = Callable[..., Graph], Callable[..., Trained]
Vectors = Callable[[str, str], NDArray[np.float32]]

GROUPS, USERS, ITEMS = 5, 400, 10
RELATIONS = {"likes": ("user", "item"), "is like": ("item", "item")}
BETTER = "hit_rate@5: new - old > 0 +- 0.4 at 0.9"


def group_of(key: str) -> int:
    return int(key.split("-")[0][1:])


def edges() -> dict[str, list[tuple[str, str, str]]]:
    """Everybody likes 5 of the 10 items of the group in train, and 2 of the other 5 in test."""
    rng = np.random.default_rng(3)
    found: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for user in range(USERS):
        group = user % GROUPS
        items = rng.permutation(ITEMS)[:7]
        for at, item in enumerate(items):
            split = "train" if at < 5 else "test"
            found[split].append((f"u{group}-{user}", "likes", f"i{group}-{item}"))
    for group in range(GROUPS):
        found["train"] += [(f"i{group}-{i}", "is like", f"i{group}-{i + 1}") for i in range(9)]
    return found


def good_for(share: float) -> Vectors:
    """A vector points to its group; of the users that come last, to the next group."""

    def vector(kind: str, key: str) -> NDArray[np.float32]:
        group = group_of(key)
        if kind == "user" and int(key.split("-")[1]) >= share * USERS:
            group += 1
        return np.eye(GROUPS, dtype=np.float32)[group % GROUPS]

    return vector


@pytest.fixture(scope="module")
def graph(make_graph: MakeGraph) -> Graph:
    return make_graph(edges(), RELATIONS, {"user": 2})


class Shop:
    def __init__(self, graph: Graph, make: MakeTrained, folder: Path) -> None:
        self.graph, self._make, self.folder = graph, make, folder
        self.first = graph
        self.root, self.uses = folder / "published", folder / releases.USES

    def judge(self, *conditions: str, **settings: Any) -> ListGate:
        # With "full" no figures are shown, and verdicts take more users.
        config = GateConfig(conditions=list(conditions), **{"adaptivity": "none", **settings})
        return ListGate(self.graph, self.root, self.uses, config, ["likes"])

    def trained(self, share: float, graph: Graph | None = None) -> Trained:
        model = ModelConfig(dim=GROUPS, comparator="dot")
        return self._make(graph or self.graph, model, good_for(share), name=f"checkpoint-{share}")

    def publish(self, share: float, judge: ListGate, keep: int = 3, graph: Any = None) -> Decision:
        settings, metrics = {"run": {"dir": "x"}}, {"checkpoint": f"of {share}"}
        config = PublishConfig(golden=4, keep=keep)
        return publish(self.trained(share, graph), self.root, config, settings, metrics, judge)[1]

    def live(self) -> str:
        return published.current(self.root)

    def json(self, version: str, name: str) -> Any:
        return json.loads((self.root / version / name).read_text())


@pytest.fixture
def shop(graph: Graph, make_trained: MakeTrained, tmp_path: Path) -> Shop:
    return Shop(graph, make_trained, tmp_path)


def of_plain_loops(share_new: float, share_old: float) -> dict[str, float]:
    """Hits, recall and changed lists among the first 5 of the group's items that were not liked: by
    plain loops, equal scores in the order of ids."""
    liked: Mapping[str, dict[str, set[str]]] = {"train": {}, "test": {}}
    for split, rows in edges().items():
        for lhs, relation, rhs in rows:
            if relation == "likes":
                liked[split].setdefault(lhs, set()).add(rhs)
    hit = {"new": 0, "old": 0}
    for user, wanted in liked["test"].items():
        for name, share in (("new", share_new), ("old", share_old)):
            # 5 of 10 items of the group are left, and both that are wanted are among them.
            assert len(wanted) == 2
            hit[name] += int(user.split("-")[1]) < share * USERS
    return {name: count / USERS for name, count in hit.items()}


def test_what_is_better_goes_live_and_what_is_worse_does_not(shop: Shop) -> None:
    judge = shop.judge(BETTER)
    first = shop.publish(0.5, judge)
    assert first.promoted and first.compared_with is None and shop.live() == "v000001"
    assert first.sentences == [f"likes/{BETTER}: skipped, no version is live yet"]
    worse = shop.publish(0.0, judge)
    assert not worse.promoted and worse.compared_with == "v000001" and shop.live() == "v000001"
    better = shop.publish(1.0, judge)
    assert better.promoted and shop.live() == "v000003"

    truth = of_plain_loops(1.0, 0.5)
    [outcome] = better.outcomes
    assert outcome.verdict == "pass" and outcome.users == USERS == better.askers["likes"]
    assert (outcome.new, outcome.old) == (truth["new"], truth["old"]) == (1.0, 0.5)
    assert outcome.value == 0.5 and outcome.changed == 0.5 and outcome.unknown == 0
    assert (outcome.only_new_hits, outcome.only_old_hits) == (USERS / 2, 0)
    assert outcome.mcnemar_p == pytest.approx(2 * 0.5 ** (USERS / 2))
    assert [outcome.verdict for outcome in worse.outcomes] == ["fail"]


def test_every_decision_leaves_a_line_and_a_use(shop: Shop) -> None:
    judge = shop.judge(BETTER)
    for share in (0.5, 0.0, 1.0):
        shop.publish(share, judge)
    lines = releases.trace(shop.root)
    assert [(line.was, line.to, line.moved) for line in lines] == [
        (None, "v000001", True),
        ("v000001", "v000002", False),
        ("v000001", "v000003", True),
    ]
    assert [line.use for line in lines] == [None, 1, 2]  # the first had nothing to be asked about
    assert lines[1].test_set == lines[2].test_set is not None
    assert lines[1].conditions[0]["verdict"] == "fail"
    assert releases.uses_of(shop.uses, judge.files())[0].uses == 2
    assert releases.roll_back(shop.root).to == "v000001"


def test_a_version_says_what_it_is_made_of_and_what_the_gate_said(shop: Shop) -> None:
    judge = shop.judge(BETTER, "changed@5 < 0.6")
    for share in (0.5, 1.0):
        shop.publish(share, judge)
    card = shop.json("v000002", "card.json")
    assert card["version"] == "v000002" and card["name"] == "x"
    assert card["created"] == published.read_manifest(shop.root, "v000002").created
    assert card["data"]["graph_digest"] == shop.graph.digest
    assert card["data"]["edges"]["test"] == {"likes": 2 * USERS}
    assert {source["path"].rsplit("/")[-1] for source in card["data"]["sources"]} == {
        "train.tsv",
        "test.tsv",
    }
    assert all(len(source["sha256"]) == 64 for source in card["data"]["sources"])
    assert card["metrics"] == {"checkpoint": "of 1.0"} and card["software"]["torch"]
    gate = card["gate"]
    assert gate["promoted"] and gate["compared_with"] == "v000001" and gate["use"] == 1
    assert [one["verdict"] for one in gate["outcomes"]] == ["pass", "pass"]
    page = (shop.root / "v000002/CARD.md").read_text()
    assert "# x v000002" in page and "compared with v000001" in page
    better = BETTER.replace(">", "&gt;")
    assert f"likes/{better}: pass: 0.5 \\[" in page
    assert "likes/changed@5 &lt; 0.6: pass: 0.5" in page
    files = published.open_version(shop.root, "v000002").manifest.files
    assert {"card.json", "CARD.md"} <= set(files)
    assert bytes(published.open_version(shop.root).file("CARD.md")).decode() == page


def test_without_conditions_golden_queries_alone_decide(shop: Shop) -> None:
    for share in (1.0, 0.0):
        decision = shop.publish(share, shop.judge())
        assert decision.promoted and decision.outcomes == () and decision.use is None
    assert shop.live() == "v000002" and not shop.uses.exists()
    assert "no conditions but the golden queries" in (shop.root / "v000002/CARD.md").read_text()


def test_the_first_version_is_held_to_what_it_can_be(shop: Shop) -> None:
    conditions = (BETTER, "hit_rate@5: new > 0.5 +- 0.2 at 0.9", "changed@5 < 0.1")
    poor = shop.publish(0.2, shop.judge(*conditions))
    assert [one.verdict for one in poor.outcomes] == ["skipped", "fail", "skipped"]
    assert not (shop.root / "CURRENT").exists() and published.versions(shop.root) == ["v000001"]
    assert shop.publish(1.0, shop.judge(*conditions)).promoted and shop.live() == "v000002"
    assert releases.before(shop.root) is None


def test_the_same_held_out_edges_are_one_test_set_however_they_are_imported(
    shop: Shop, make_graph: MakeGraph
) -> None:
    shop.publish(0.5, shop.judge(BETTER, max_uses=3))
    assert shop.publish(1.0, shop.judge(BETTER, max_uses=3)).use == 1
    first = content_of(shop.graph, "likes", "test")
    assert first.startswith(f"likes: {2 * USERS} edges, ")
    assert content_of(shop.graph, "likes", "valid") == ""

    turned = {split: rows[::-1] for split, rows in edges().items()}
    turned["train"] += [(f"u9-{n}", "likes", "i0-1") for n in range(50)]  # who came since
    shop.graph = make_graph(turned, RELATIONS, {"user": 3})
    again = shop.judge(BETTER, max_uses=3)
    assert not set(again.files()) & set(ListGate.files(replace(again, graph=shop.first)))
    assert content_of(shop.graph, "likes", "test") == first
    assert shop.publish(1.0, again).use == 2

    other = {**turned, "test": turned["test"][1:]}
    shop.graph = make_graph(other, RELATIONS)
    assert content_of(shop.graph, "likes", "test") != first
    assert shop.publish(1.0, shop.judge(BETTER, max_uses=3)).use == 1


def test_limits_need_no_labels_and_use_nothing_up(shop: Shop) -> None:
    judge = shop.judge("changed@5 < 0.3", "coverage@5: new - old > -0.1", "gini@5: new < 0.9")
    shop.publish(1.0, judge)
    near, far = shop.publish(0.8, judge), shop.publish(0.5, judge)
    assert near.promoted and near.outcomes[0].value == pytest.approx(0.2)
    assert not far.promoted and far.outcomes[0].value == pytest.approx(0.3)  # .8 and .5 differ so
    assert not shop.uses.exists() and near.outcomes[1].value is not None


def test_a_test_set_that_is_used_up_lets_nothing_live_and_shows_nothing(shop: Shop) -> None:
    judge = shop.judge(BETTER, max_uses=2)
    for share in (0.5, 0.0, 0.1):
        shop.publish(share, judge)
    refused = shop.publish(1.0, judge)
    assert not refused.promoted and refused.outcomes == () and shop.live() == "v000001"
    assert "The test set has decided 2 times" in refused.why
    assert "Hold out other events" in (shop.root / "v000004/CARD.md").read_text()
    text = (shop.root / "v000004/card.json").read_text() + (shop.root / "gate.jsonl").read_text()
    assert '"outcomes": []' in text


def test_too_few_users_decide_nothing(shop: Shop) -> None:
    judge = shop.judge("hit_rate@5: new - old > 0 +- 0.01 at 0.999", mode="fn-free")
    shop.publish(0.0, judge)
    found = shop.publish(1.0, judge)
    [outcome] = found.outcomes
    assert outcome.verdict == "not enough users" and not found.promoted
    assert outcome.needed is not None and outcome.needed > USERS
    assert outcome.supported is not None and 0.1 < outcome.supported < 1


@pytest.mark.parametrize(("mode", "promoted"), [("fp-free", False), ("fn-free", True)])
def test_what_is_not_known_is_for_the_mode_to_say(mode: str, promoted: bool, shop: Shop) -> None:
    judge = shop.judge(BETTER, mode=mode)
    shop.publish(0.5, judge)
    found = shop.publish(0.6, judge)
    assert [one.verdict for one in found.outcomes] == ["unknown"]
    assert found.promoted == promoted


def test_people_whom_the_live_version_does_not_know_get_nothing_of_it_and_are_counted(
    shop: Shop, make_graph: MakeGraph
) -> None:
    known = edges()
    some = {
        split: [row for row in rows if row[0][0] == "i" or int(row[0].split("-")[1]) < 300]
        for split, rows in known.items()
    }
    small = make_graph(some, RELATIONS)
    assert shop.publish(1.0, shop.judge(), graph=small).promoted
    found = shop.publish(1.0, shop.judge(BETTER))
    [outcome] = found.outcomes
    assert outcome.unknown == 100 and outcome.old == 0.75 and outcome.new == 1.0
    assert "100 are unknown to the live version, which gets 0 for them" in outcome.sentence


def damage(shop: Shop, version: str) -> None:
    (shop.root / version / "golden.json").write_text("")


def force(shop: Shop, version: str) -> None:
    conclude(
        shop.root,
        version,
        Decision(True, releases.live(shop.root), None, why="by --force"),
        9,
        "forced",
    )


def test_a_relation_that_the_live_version_never_learnt_is_not_let_through_unasked(
    shop: Shop, make_graph: MakeGraph
) -> None:
    likes = {split: [r for r in rows if r[1] == "likes"] for split, rows in edges().items()}
    other = make_graph(
        {"train": [(a, "wants", b) for a, _, b in likes["train"]]}, {"wants": ("user", "item")}
    )
    shop.publish(1.0, shop.judge(), graph=other)
    found = shop.publish(0.1, shop.judge(BETTER))
    assert not found.promoted and shop.live() == "v000001"
    assert found.sentences == [
        f"likes/{BETTER}: nothing to compare with, v000001, which is live, has no relation likes"
    ]
    assert not shop.uses.exists()
    force(shop, "v000002")
    assert shop.live() == "v000002"


def test_where_the_live_version_is_damaged_the_one_before_is_compared_with(shop: Shop) -> None:
    for share in (0.9, 0.8, 0.5, 0.7):
        shop.publish(share, shop.judge(), keep=9)
    damage(shop, "v000003")
    damage(shop, "v000004")
    worse = shop.publish(0.1, shop.judge(BETTER), keep=9)
    assert not worse.promoted and (worse.live, worse.compared_with) == ("v000004", "v000002")
    assert worse.outcomes[0].old == 0.8 and shop.live() == "v000004"
    assert worse.sentences[0].startswith("the live version is damaged (")
    assert worse.sentences[0].endswith("): compared with v000002, which was live before")
    assert "golden.json has 0 bytes" in (shop.root / "v000005/CARD.md").read_text()
    (shop.root / "CURRENT").write_text("what?")
    lost = shop.publish(0.1, shop.judge(BETTER), keep=9)
    assert not lost.promoted and (lost.live, lost.compared_with) == (None, "v000002")
    (shop.root / "CURRENT").unlink()
    gone = shop.publish(0.1, shop.judge(BETTER), keep=9)
    assert not gone.promoted and not (shop.root / "CURRENT").exists()
    assert "CURRENT, which names the live version, is missing: compared with" in gone.why
    better = shop.publish(1.0, shop.judge("hit_rate@5: new - old > -0.2 +- 0.35 at 0.9"), keep=9)
    assert better.promoted and shop.live() == "v000008"


@pytest.mark.parametrize("lost", ["version", "CURRENT", "name"])
def test_where_all_that_was_live_is_damaged_only_force_lets_another_live(
    lost: str, shop: Shop
) -> None:
    shop.publish(1.0, shop.judge())
    damage(shop, "v000001")
    if lost == "name":
        (shop.root / "CURRENT").write_text("v00")
    if lost == "CURRENT":
        (shop.root / "CURRENT").unlink()
    found = shop.publish(0.0, shop.judge(BETTER))
    assert [one.verdict for one in found.outcomes] == ["nothing to compare with"]
    assert not found.promoted and "no other that was live is whole" in found.sentences[0]
    assert releases.live(shop.root) == ("v000001" if lost == "version" else None)
    assert not shop.uses.exists()
    force(shop, "v000002")
    assert shop.live() == "v000002"


def test_a_decision_of_a_version_that_is_not_live_any_more_is_none(shop: Shop) -> None:
    for share in (0.1, 0.9, 0.5):
        shop.publish(share, shop.judge())
    stale = Decision(True, "v000001", "v000001")
    before = releases.trace(shop.root)
    releases.roll_back(shop.root)
    with pytest.raises(DataError) as error:
        conclude(shop.root, "v000003", stale, 3)
    assert str(error.value) == (
        "v000003 was let live while v000001 was, but by now v000002 is live in "
        f"{shop.root}. Let embedsvc gate decide again."
    )
    assert shop.live() == "v000002" and len(releases.trace(shop.root)) == len(before) + 1


def test_nothing_makes_a_damaged_version_live(shop: Shop) -> None:
    for share in (0.1, 0.9):
        shop.publish(share, shop.judge())
    damage(shop, "v000001")
    before = releases.trace(shop.root)
    with pytest.raises(DataError, match=r"golden\.json has 0 bytes"):
        force(shop, "v000001")
    with pytest.raises(DataError, match=r"golden\.json has 0 bytes"):
        releases.roll_back(shop.root)
    with pytest.raises(DataError, match=r"golden\.json has 0 bytes"):
        conclude(shop.root, "v000001", Decision(True, "v000002", None), 3)
    assert shop.live() == "v000002" and releases.trace(shop.root) == before


def road(shop: Shop, said: list[str]) -> Releases:
    return Releases(shop.root, "shop.toml", 9, said.append)


def test_what_conditions_kept_back_does_not_go_live_because_there_are_none_now(shop: Shop) -> None:
    shop.publish(0.5, shop.judge(BETTER))
    shop.publish(0.0, shop.judge(BETTER))
    said: list[str] = []
    for _ in range(2):
        assert not road(shop, said).gate(shop.judge, None, force=False)
    assert shop.live() == "v000001"
    assert "gate: its conditions kept it back, and [gate] has none now to ask instead" in said
    (shop.root / releases.TRACE).unlink()  # the card says it too
    assert not road(shop, said).gate(shop.judge, None, force=False)
    assert road(shop, said).gate(shop.judge, None, force=True) and shop.live() == "v000002"


def test_a_version_that_goes_live_unasked_is_told_from_one_that_passed(shop: Shop) -> None:
    shop.publish(0.5, shop.judge())
    shop.publish(1.0, shop.judge(BETTER))
    releases.roll_back(shop.root)
    assert road(shop, []).gate(shop.judge, None, force=False) and shop.live() == "v000002"
    kinds = [line.kind for line in releases.trace(shop.root)]
    assert kinds == ["ungated", "decision", "rollback", "ungated"]


def test_a_version_that_there_is_not_is_said_before_it_is_asked(shop: Shop) -> None:
    shop.publish(0.5, shop.judge())
    for forced in (False, True):
        with pytest.raises(DataError) as error:
            road(shop, []).gate(shop.judge, "v000009", force=forced)
        assert str(error.value) == (f"{shop.root} has no version v000009. Did you mean v000001?")


def test_of_nobody_to_ask_nothing_is_let_live(shop: Shop) -> None:
    """The split is empty, and a mean of nothing is no number; nor does it use the split up."""
    judge = shop.judge(BETTER, "changed@5 < 1", split="valid")
    shop.publish(1.0, judge)
    found = shop.publish(1.0, judge)
    assert [one.verdict for one in found.outcomes] == ["not enough users", "fail"]
    assert found.outcomes[0].value is None and found.outcomes[0].users == 0 and not found.promoted
    assert "no value" in found.outcomes[1].sentence
    assert found.sentences[0] == (
        "the valid split has no edges of likes; set graph.holdout and import again"
    )
    assert found.use is None and not shop.uses.exists()


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("likes/recall@51: new > 0 +- 0.1 at 0.9", "a list of 51 is longer than all 50 item "),
        ("like/recall@5: new > 0 +- 0.1 at 0.9", "no lists of like. Did you mean likes?"),
        ("user_auc: new > 0 +- 0.1 at 0.9", "user_auc is of a [ranker]; of lists there are recall"),
    ],
)
def test_what_lists_can_not_be_asked_is_refused_before_a_version_is_made(
    condition: str, sentence: str, shop: Shop
) -> None:
    with pytest.raises(ConfigError) as error:
        shop.publish(1.0, shop.judge(condition))
    assert sentence in str(error.value) and published.versions(shop.root) == []


def test_where_there_are_lists_of_several_relations_a_condition_names_one(shop: Shop) -> None:
    several = ListGate(shop.graph, shop.root, shop.uses, GateConfig(conditions=[BETTER]))
    with pytest.raises(ConfigError, match=r"lists of likes, is like: name one, such as likes/hit_"):
        shop.publish(1.0, several)
    named = GateConfig(conditions=[f"likes/{BETTER}", "is like/changed@5 < 0.5"], adaptivity="none")
    with_both = ListGate(shop.graph, shop.root, shop.uses, named)
    shop.publish(0.0, with_both)
    found = shop.publish(1.0, with_both)
    assert [one.verdict for one in found.outcomes] == ["pass", "fail"]  # nobody is asked of it
    assert found.askers == {"likes": USERS, "is like": 0}


def test_old_versions_go_but_not_what_waits_at_the_gate_nor_what_was_live_before(
    shop: Shop,
) -> None:
    judge = shop.judge("hit_rate@5: new > 0.5 +- 0.3 at 0.9")
    for share in (0.9, 1.0, 0.0, 0.0, 0.0):
        shop.publish(share, judge, keep=1)
    assert shop.live() == "v000002"
    assert published.versions(shop.root) == ["v000001", "v000002", "v000005"]


# --- kills ----------------------------------------------------------------------------------------


class Killed(BaseException):
    """Nothing catches it, as nothing catches kill -9; folders are left as they are."""


def kill_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    monkeypatch.setattr(module, name, die)


@pytest.mark.parametrize("at", ["record", "set_current"])
def test_a_kill_between_version_and_current_is_made_good(
    at: str, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = shop.judge(BETTER)
    shop.publish(0.0, judge)
    with monkeypatch.context() as patch:
        kill_at(patch, releases if at == "record" else published, at)
        with pytest.raises(Killed):
            shop.publish(1.0, judge)
    assert published.versions(shop.root) == ["v000001", "v000002"] and shop.live() == "v000001"
    assert resumed(shop.root, "v000002", 3) and shop.live() == "v000002"
    assert [line.to for line in releases.trace(shop.root)] == ["v000001", "v000002"]
    assert releases.before(shop.root) == "v000001"
    assert releases.uses_of(shop.uses, judge.files())[0].uses == 1


def test_a_kill_before_the_version_is_whole_still_counts_its_use(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = shop.judge(BETTER)
    shop.publish(0.0, judge)
    with monkeypatch.context() as patch:
        kill_at(patch, published.Draft, "add")
        with pytest.raises(Killed):
            shop.publish(1.0, judge)
    assert published.versions(shop.root) == ["v000001"]
    assert releases.uses_of(shop.uses, judge.files())[0].uses == 1


@pytest.mark.parametrize("how", ["kept back", "gone back from", "another is live"])
def test_what_was_not_let_live_does_not_slip_in_later(how: str, shop: Shop) -> None:
    judge = shop.judge(BETTER)
    shop.publish(0.5, judge)
    shop.publish(0.0 if how == "kept back" else 1.0, judge)
    if how == "gone back from":
        releases.roll_back(shop.root)
    if how == "another is live":
        releases.roll_back(shop.root)
        shop.publish(0.5, shop.judge())
    before = shop.live()
    assert not resumed(shop.root, "v000002", 3)
    assert shop.live() == before != "v000002"


def test_a_value_that_is_not_known_is_null_in_the_card(shop: Shop) -> None:
    judge = shop.judge(BETTER, "novelty@5: new > 1", split="valid")
    shop.publish(1.0, judge)
    text = (shop.root / "v000001/card.json").read_text()
    assert "NaN" not in text
