"""What the table of accelerators says of the devices that JAX shows."""

import pytest

from jaxft.chips import CHIPS, of_kind, peak_flops


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200 NVL", "h200-nvl"),
    ],
)
def test_a_device_is_found_by_the_longest_kind_that_fits(kind, name):
    assert of_kind(kind) is CHIPS[name]


def test_an_unknown_device_has_no_peak():
    assert of_kind("cpu") is None
    assert peak_flops("NVIDIA T4") is None
