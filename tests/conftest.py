"""What all tests share: no time limit per hypothesis example, no GPU test without a GPU."""

import pytest
from hypothesis import settings

settings.register_profile("embedsvc", deadline=None)  # others may use the machine too
settings.load_profile("embedsvc")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
