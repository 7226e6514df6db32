"""The committed stubs are what the compiler makes of the committed contract."""

from pathlib import Path

import pytest
from grpc_tools import protoc

from serving import embedsvc_pb2 as pb

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("ending", ["_pb2.py", "_pb2.pyi", "_pb2_grpc.py"])
def test_committed_stubs_equal_generated_ones(tmp_path: Path, ending: str) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    proto = ROOT / "serving" / "embedsvc.proto"
    assert protoc.main(["protoc", f"-I{ROOT}", *outputs, str(proto)]) == 0
    generated = (tmp_path / "serving" / f"embedsvc{ending}").read_bytes()
    assert (ROOT / "serving" / f"embedsvc{ending}").read_bytes() == generated, (
        "run: python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. "
        "serving/embedsvc.proto"
    )


def test_a_field_has_one_number_in_every_message() -> None:
    numbers: dict[str, int] = {}
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        if message.name.endswith(("Request", "Response")):
            kind = message.name[-8:]
            for field in message.fields:
                if field.name in {"key", "history", "relation", "index", "entity_type"}:
                    continue  # what one method alone is asked
                name = f"{kind}.{field.name}"
                assert numbers.setdefault(name, field.number) == field.number, name
