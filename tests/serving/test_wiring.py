"""How batches are sized and warmed, by device."""

import pytest

from serving.settings import ServerSettings
from serving.wiring import batch_settings, warm_sizes


@pytest.mark.parametrize(
    "pad, device, padded",
    [
        ("auto", "cpu", False),
        ("auto", "cuda", True),
        ("on", "cpu", True),
        ("off", "cuda", False),
    ],
)
def test_what_is_padded_to_is_warmed(pad: str, device: str, padded: bool) -> None:
    settings = ServerSettings(max_batch=12, pad=pad)
    sizes = (1, 2, 4, 8, 12)
    assert batch_settings(settings, device).sizes == (sizes if padded else ())
    assert warm_sizes(settings, device) == (sizes if padded else (1, 12))
