"""What the three services answer, and how they refuse, from a real server."""

import uuid
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from serving import embedsvc_pb2 as pb
from serving import embedsvc_pb2_grpc
from serving.client import Client, InvalidRequest, NotFound, TooLarge
from tests.serving.toy import (
    DIM,
    NUM_ITEMS,
    NUM_USERS,
    OPERATORS,
    Toy,
    best,
    client_of,
    publish,
)


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_answers_equal_brute_force(tmp_path: Path, metric: Any) -> None:
    toy = publish(tmp_path, metric)
    with client_of(tmp_path) as client:
        for relation in OPERATORS:
            for user in (0, 6, 13):
                scores = toy.scores(toy.moved(relation, user), "item", metric)
                expected = best(scores, 10, toy.seen[user])
                hits = client.recommend(relation, toy.users[user]).hits
                assert hits.keys == [toy.items[id] for id in expected]
                np.testing.assert_allclose(hits.scores, scores[expected], rtol=1e-4, atol=1e-5)
        for index, by in (("item", "l2" if metric == "l2" else "cos"), ("item/score", metric)):
            found = client.find_neighbors(index, toy.items[:5], k=7, return_vectors=True)
            for item, hits in enumerate(found.hits):
                scores = toy.scores(toy.vectors["item"][item], "item", by)
                expected = best(scores, 7, [item])
                assert hits.keys == [toy.items[id] for id in expected]
                np.testing.assert_allclose(hits.scores, scores[expected], rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(hits.vectors, toy.vectors["item"][expected])


@pytest.mark.parametrize("metric", ["dot", "cos", "l2"])
def test_history_is_the_mean_of_its_directions(tmp_path: Path, metric: Any) -> None:
    toy = publish(tmp_path, metric)
    history = [3, 14, 15, 9]
    rows = toy.vectors["item"][history]
    if metric != "l2":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    scores = toy.scores(rows.mean(axis=0), "item", metric)
    with client_of(tmp_path) as client:
        keys = [toy.items[id] for id in history]
        found = client.recommend("identity", history=[*keys, "nobody"], k=NUM_ITEMS)
        assert found.missing_keys == ["nobody"]
        assert found.hits.keys == [toy.items[id] for id in best(scores, NUM_ITEMS, history)]
        with pytest.raises(NotFound, match="No key of the history is a known item"):
            client.recommend("identity", history=["nobody", "nothing"])


def test_vectors_are_answered_as_keys_are(shared_toy: Toy, client: Client) -> None:
    queries = shared_toy.vectors["item"][:3]
    by_key = client.find_neighbors("item", shared_toy.items[:3], k=5)
    by_vector = client.find_neighbors("item", vectors=queries, k=6)
    for item, (keyed, hits) in enumerate(zip(by_key.hits, by_vector.hits, strict=True)):
        assert hits.keys == [shared_toy.items[item], *keyed.keys]  # a vector's own row is found
    half = client.find_neighbors("item", vectors=queries[0].astype(np.float16), k=6)
    assert half.hits[0].keys[0] == shared_toy.items[0]


def test_all_there_is_comes_back_for_a_large_k(shared_toy: Toy, client: Client) -> None:
    user, seen = shared_toy.users[6], shared_toy.seen[6]
    unseen = {key for id, key in enumerate(shared_toy.items) if id not in seen}
    assert set(client.recommend("identity", user, k=1000).hits.keys) == unseen
    every = client.recommend("identity", user, k=1000, exclude_seen=False).hits.keys
    assert sorted(every) == shared_toy.items
    others = client.find_neighbors("item", shared_toy.items[0], k=1000).hits[0].keys
    assert sorted(others) == shared_toy.items[1:]
    assert len(client.find_neighbors("item", shared_toy.items[0], k=0).hits[0].keys) == 10


def test_k_results_come_back_when_the_best_are_excluded(shared_toy: Toy, client: Client) -> None:
    ranked = client.recommend("identity", shared_toy.users[6], k=1000).hits.keys
    left = client.recommend(
        "identity", shared_toy.users[6], exclude_keys=[*ranked[:30], "unknown"]
    ).hits.keys
    assert left == ranked[30:40]
    near = client.find_neighbors("item", shared_toy.items[0], k=1000).hits[0].keys
    left = client.find_neighbors(
        "item", shared_toy.items[:2], k=5, exclude_keys=[*near[:40], *shared_toy.items[:1]]
    )
    assert left.hits[0].keys == near[40:45]
    nothing = client.find_neighbors("item", shared_toy.items[0], exclude_keys=shared_toy.items)
    assert nothing.hits[0].keys == []


def test_nobody_is_recommended_to_themselves(shared_toy: Toy, client: Client) -> None:
    user = shared_toy.users[0]
    hits = client.recommend("follows", user, k=1000).hits
    assert user not in hits.keys and len(hits.keys) == NUM_USERS - 1
    assert user in client.recommend("follows", user, k=1000, exclude_seen=False).hits.keys


def test_unknown_keys_of_a_batch_are_listed(shared_toy: Toy, client: Client) -> None:
    known = shared_toy.items[:2]
    found = client.find_neighbors("item", [known[0], "x", known[1], "x", "y"], k=4)
    assert [len(hits.keys) for hits in found.hits] == [4, 0, 4, 0, 0]
    assert found.missing_keys == ["x", "y"]
    nothing = client.find_neighbors("item", ["x", "y"], return_vectors=True)
    assert [hits.keys for hits in nothing.hits] == [[], []]
    got = client.get_embeddings("item", [known[1], "x", known[0], known[1]])
    assert (got.keys, got.missing_keys) == ([known[1], known[0], known[1]], ["x"])
    np.testing.assert_array_equal(got.vectors, shared_toy.vectors["item"][[1, 0, 1]])
    assert client.get_embeddings("item", "x").vectors.shape == (0, DIM)


def test_attributes_come_in_columns(shared_toy: Toy, client: Client) -> None:
    keys = shared_toy.items[:2]
    found = client.find_neighbors("item", keys, k=30, return_attributes=True)
    for hits in found.hits:
        assert list(hits.attributes) == ["title"]
        expected = [
            "" if shared_toy.items.index(key) % 3 == 0 else f"Title of {key}" for key in hits.keys
        ]
        assert hits.attributes["title"] == expected
    assert client.find_neighbors("item", keys).hits[0].attributes == {}
    hits = client.recommend("identity", shared_toy.users[0], return_attributes=True).hits
    assert len(hits.attributes["title"]) == 10


def test_every_reply_says_what_it_is(shared_toy: Toy, client: Client) -> None:
    found = client.find_neighbors("item", shared_toy.items[0], request_id="my-id")
    assert (found.version, found.request_id, found.coverage) == (shared_toy.name, "my-id", 1.0)
    assert set(found.server_time_us) == {"queue", "lookup", "search", "encode"}
    assert uuid.UUID(client.get_embeddings("item", "x").request_id).version == 4
    assert client.recommend("identity", shared_toy.users[0], version="v000001").version == "v000001"


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"k": -1}, "k", "k = -1: ask for 1 to 1000 results (0: 10)."),
        ({"k": 1001}, "k", "k = 1001: ask for 1 to 1000 results (0: 10)."),
        ({"keys": []}, "keys", "keys holds 0 keys: send 1 to 1000."),
        ({"keys": ["a"] * 1001}, "keys", "keys holds 1001 keys: send 1 to 1000."),
        (
            {"exclude_keys": ["a"] * 10_001},
            "exclude_keys",
            "exclude_keys holds 10001 keys: at most 10000.",
        ),
        ({"request_id": "x" * 65}, "request_id", "request_id has 65 characters: at most 64."),
    ],
)
def test_a_broken_limit_is_named(
    client: Client, changes: dict[str, Any], field: str, sentence: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.find_neighbors(**{"index": "item", "keys": ["item00"]} | changes)
    assert (caught.value.field, str(caught.value)) == (field, sentence)
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("vectors", "field", "sentence"),
    [
        (
            {"dim": 4, "data": bytes(16)},
            "vectors.dim",
            "vectors.dim = 4: the vectors here have dimension 8.",
        ),
        (
            {"dim": 8, "data": bytes(33)},
            "vectors.data",
            "vectors.data has 33 bytes: send 1 to 1000 rows of 8 x 4 bytes.",
        ),
        (
            {"dim": 8, "data": bytes(24), "dtype": 1},
            "vectors.data",
            "vectors.data has 24 bytes: send 1 to 1000 rows of 8 x 2 bytes.",
        ),
        (
            {"dim": 8, "data": b""},
            "vectors.data",
            "vectors.data has 0 bytes: send 1 to 1000 rows of 8 x 4 bytes.",
        ),
        (
            {"dim": 8, "data": bytes(32), "dtype": 7},
            "vectors.dtype",
            "vectors.dtype = 7: send FLOAT32 or FLOAT16.",
        ),
    ],
)
def test_a_malformed_vector_is_named(
    client: Client, vectors: dict[str, Any], field: str, sentence: str
) -> None:
    with grpc.insecure_channel(client.target) as channel, pytest.raises(grpc.RpcError) as caught:
        stub = embedsvc_pb2_grpc.NearestNeighborsStub(channel)
        stub.FindNeighbors(pb.FindNeighborsRequest(index="item", vectors=pb.Vectors(**vectors)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == sentence
    (violation,) = unpacked(caught.value, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == (field, sentence)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_a_vector_without_a_length_is_refused(client: Client, bad: float) -> None:
    vectors = np.zeros((3, DIM), np.float32)
    vectors[1, 2] = bad
    with pytest.raises(InvalidRequest, match="row 1 holds NaN") as caught:
        client.find_neighbors("item", vectors=vectors)
    assert caught.value.field == "vectors.data"


def test_a_call_asks_one_thing(shared_toy: Toy, client: Client) -> None:
    with pytest.raises(InvalidRequest, match="takes either keys or vectors"):
        client.find_neighbors("item")
    with pytest.raises(InvalidRequest, match="takes either a key or a history"):
        client.recommend("identity", "user00", history=["item00"])
    with grpc.insecure_channel(client.target) as channel:
        for method, request in (
            (
                embedsvc_pb2_grpc.RecommenderStub(channel).Recommend,
                pb.RecommendRequest(relation="identity"),
            ),
            (
                embedsvc_pb2_grpc.NearestNeighborsStub(channel).FindNeighbors,
                pb.FindNeighborsRequest(index="item"),
            ),
        ):
            with pytest.raises(grpc.RpcError, match="is unset") as caught:
                method(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_vector_of_zeros_is_answered(client: Client) -> None:
    found = client.find_neighbors("item", vectors=np.zeros(DIM))
    assert found.hits[0].scores.tolist() == [0.0] * 10


@pytest.mark.parametrize(
    ("call", "noun", "name", "sentence"),
    [
        (
            lambda client: client.find_neighbors("item", "item07x"),
            "item",
            "item07x",
            "There is no item item07x. Did you mean item07?",
        ),
        (
            lambda client: client.recommend("identity", "?"),
            "user",
            "?",
            "There is no user ?.",
        ),
        (
            lambda client: client.find_neighbors("itm", "item07"),
            "entity type",
            "itm",
            "There is no entity type named itm. Did you mean item?",
        ),
        (
            lambda client: client.find_neighbors("item/like", "item07"),
            "index of item",
            "like",
            "There is no index of item named like. Known here: score, similar.",
        ),
        (
            lambda client: client.recommend("identiti", "user00"),
            "relation",
            "identiti",
            "There is no relation named identiti. Did you mean identity?",
        ),
        (
            lambda client: client.get_embeddings("item", "item07", version="v000009"),
            "version",
            "v000009",
            "Version v000009 is not loaded: v000001 is. Leave version unset.",
        ),
    ],
)
def test_an_unknown_name_is_not_found(
    client: Client, call: Any, noun: str, name: str, sentence: str
) -> None:
    with pytest.raises(NotFound) as caught:
        call(client)
    assert (caught.value.noun, caught.value.name, str(caught.value)) == (noun, name, sentence)


def test_errors_carry_their_details(client: Client) -> None:
    with grpc.insecure_channel(client.target) as channel, pytest.raises(grpc.RpcError) as caught:
        stub = embedsvc_pb2_grpc.RecommenderStub(channel)
        stub.Recommend(pb.RecommendRequest(relation="identity", key="?", request_id="42"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    info = unpacked(caught.value, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["request_id"]) == (
        "NOT_FOUND",
        "embedsvc",
        "42",
    )
    resource = unpacked(caught.value, error_details_pb2.ResourceInfo)
    assert (resource.resource_type, resource.resource_name) == ("user", "?")


def test_random_bytes_are_an_invalid_request(client: Client) -> None:
    rng = np.random.default_rng(5)
    codes = set()
    with grpc.insecure_channel(client.target) as channel:
        for method in ("NearestNeighbors/FindNeighbors", "Recommender/Recommend"):
            send = channel.unary_unary(f"/embedsvc.serving.v1.{method}")
            for length in range(60):
                with pytest.raises(grpc.RpcError) as caught:
                    send(rng.bytes(length))
                codes.add(caught.value.code())
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}


def test_an_unexpected_error_leaks_nothing(
    shared_toy: Toy, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("serving.service.named", broken)
    with pytest.raises(Exception, match="The server made a mistake") as caught:
        client.recommend("identity", shared_toy.users[0], request_id="find-me")
    assert "secret" not in str(caught.value)
    assert "secret" in caplog.text and "find-me" in caplog.text


def test_a_reply_over_16_mib_is_refused_with_advice(tmp_path: Path) -> None:
    toy = publish(tmp_path, num_items=1000)
    with client_of(tmp_path) as client, pytest.raises(TooLarge, match="a smaller k"):
        client.find_neighbors("item", toy.items, k=999, return_vectors=True)


def unpacked(error: grpc.RpcError, kind: type[Any]) -> Any:
    """The one detail of this kind."""
    for packed in rpc_status.from_call(error).details:
        found = kind()
        if packed.Unpack(found):
            return found
    raise AssertionError(f"no {kind.__name__}")
