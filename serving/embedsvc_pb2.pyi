from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Vectors(_message.Message):
    __slots__ = ("data", "dtype", "dim")
    class Dtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FLOAT32: _ClassVar[Vectors.Dtype]
        FLOAT16: _ClassVar[Vectors.Dtype]
    FLOAT32: Vectors.Dtype
    FLOAT16: Vectors.Dtype
    DATA_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    dtype: Vectors.Dtype
    dim: int
    def __init__(self, data: _Optional[bytes] = ..., dtype: _Optional[_Union[Vectors.Dtype, str]] = ..., dim: _Optional[int] = ...) -> None: ...

class Keys(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, keys: _Optional[_Iterable[str]] = ...) -> None: ...

class FindNeighborsRequest(_message.Message):
    __slots__ = ("index", "vectors", "keys", "k", "exclude_keys", "version", "return_vectors", "return_attributes", "request_id")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RETURN_VECTORS_FIELD_NUMBER: _ClassVar[int]
    RETURN_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    index: str
    vectors: Vectors
    keys: Keys
    k: int
    exclude_keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    return_vectors: bool
    return_attributes: bool
    request_id: str
    def __init__(self, index: _Optional[str] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., keys: _Optional[_Union[Keys, _Mapping]] = ..., k: _Optional[int] = ..., exclude_keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., return_vectors: _Optional[bool] = ..., return_attributes: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class FindNeighborsResponse(_message.Message):
    __slots__ = ("keys", "scores", "counts", "vectors", "attributes", "dim", "missing_keys", "version", "coverage", "server_time_us", "request_id")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    MISSING_KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_US_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    scores: bytes
    counts: _containers.RepeatedScalarFieldContainer[int]
    vectors: bytes
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    dim: int
    missing_keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    coverage: Coverage
    server_time_us: ServerTime
    request_id: str
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., scores: _Optional[bytes] = ..., counts: _Optional[_Iterable[int]] = ..., vectors: _Optional[bytes] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., dim: _Optional[int] = ..., missing_keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ..., server_time_us: _Optional[_Union[ServerTime, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchGetEmbeddingsRequest(_message.Message):
    __slots__ = ("entity_type", "keys", "version", "request_id")
    ENTITY_TYPE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    entity_type: str
    keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    request_id: str
    def __init__(self, entity_type: _Optional[str] = ..., keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class BatchGetEmbeddingsResponse(_message.Message):
    __slots__ = ("vectors", "dim", "missing_keys", "version", "coverage", "server_time_us", "request_id")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    DIM_FIELD_NUMBER: _ClassVar[int]
    MISSING_KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_US_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    vectors: bytes
    dim: int
    missing_keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    coverage: Coverage
    server_time_us: ServerTime
    request_id: str
    def __init__(self, vectors: _Optional[bytes] = ..., dim: _Optional[int] = ..., missing_keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ..., server_time_us: _Optional[_Union[ServerTime, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("relation", "key", "history", "k", "exclude_keys", "version", "exclude_seen", "return_attributes", "request_id")
    RELATION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_SEEN_FIELD_NUMBER: _ClassVar[int]
    RETURN_ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    relation: str
    key: str
    history: Keys
    k: int
    exclude_keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    exclude_seen: bool
    return_attributes: bool
    request_id: str
    def __init__(self, relation: _Optional[str] = ..., key: _Optional[str] = ..., history: _Optional[_Union[Keys, _Mapping]] = ..., k: _Optional[int] = ..., exclude_keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., exclude_seen: _Optional[bool] = ..., return_attributes: _Optional[bool] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("keys", "scores", "attributes", "missing_keys", "version", "coverage", "server_time_us", "request_id")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    MISSING_KEYS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    COVERAGE_FIELD_NUMBER: _ClassVar[int]
    SERVER_TIME_US_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[str]
    scores: bytes
    attributes: _containers.RepeatedCompositeFieldContainer[Attribute]
    missing_keys: _containers.RepeatedScalarFieldContainer[str]
    version: str
    coverage: Coverage
    server_time_us: ServerTime
    request_id: str
    def __init__(self, keys: _Optional[_Iterable[str]] = ..., scores: _Optional[bytes] = ..., attributes: _Optional[_Iterable[_Union[Attribute, _Mapping]]] = ..., missing_keys: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., coverage: _Optional[_Union[Coverage, _Mapping]] = ..., server_time_us: _Optional[_Union[ServerTime, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class Attribute(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class Coverage(_message.Message):
    __slots__ = ("searched_shards", "total_shards", "fraction")
    SEARCHED_SHARDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SHARDS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    searched_shards: int
    total_shards: int
    fraction: float
    def __init__(self, searched_shards: _Optional[int] = ..., total_shards: _Optional[int] = ..., fraction: _Optional[float] = ...) -> None: ...

class ServerTime(_message.Message):
    __slots__ = ("queue", "lookup", "search", "encode")
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    LOOKUP_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    queue: int
    lookup: int
    search: int
    encode: int
    def __init__(self, queue: _Optional[int] = ..., lookup: _Optional[int] = ..., search: _Optional[int] = ..., encode: _Optional[int] = ...) -> None: ...
