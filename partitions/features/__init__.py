"""Feature encoding: rows -> ids and numbers, fitted on training rows, one code for training and
serving. numpy and pyarrow only.

    features = Features.fit(config, batches)
    encoded = features.encode(rows)

Settings are in config.py, what comes out in layout.py, formulas in numbers.py, times.py and
crosses.py, the hash in fingerprints.py, the files in saved.py, what two fits share in continued.py.
"""

from partitions.features.config import CrossSpec, FeaturesConfig, FeatureSpec
from partitions.features.features import Features
from partitions.features.layout import Encoded, Layout, Slot, joined

__all__ = [
    "CrossSpec",
    "Encoded",
    "FeatureSpec",
    "Features",
    "FeaturesConfig",
    "Layout",
    "Slot",
    "joined",
]
