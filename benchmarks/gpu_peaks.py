"""Peak rates of matrix products on known GPUs, dense and without sparsity, in TFLOP/s (10^12 operations a second).

A GPU is recognized by the exact name that its driver reports: a laptop GPU, a part of a GPU (MIG) or a slower edition has another name and
other peaks, and gets no share of the peak rather than a wrong one.
"""

from typing import NamedTuple


class Peak(NamedTuple):
    """Dense peaks in TFLOP/s, None for a format that the tensor cores do not support; `source` names the document with the figures."""

    tf32: float | None
    bf16: float | None
    source: str


# for Ampere and later, data sheets print figures with sparsity, which are twice the dense figures given here
_H100_SXM = Peak(494.5, 989.5, "NVIDIA H100 data sheet (SXM: TF32 989, BF16 1,979 with sparsity)")
_H100_PCIE = Peak(378.0, 756.5, "NVIDIA H100 data sheet (PCIe: TF32 756, BF16 1,513 with sparsity)")
_H100_NVL = Peak(417.5, 835.5, "NVIDIA H100 data sheet (NVL: TF32 835, BF16 1,671 with sparsity)")
_H200_SXM = Peak(494.5, 989.5, "NVIDIA H200 data sheet (SXM: TF32 989, BF16 1,979 with sparsity)")
_H200_NVL = Peak(417.5, 835.5, "NVIDIA H200 data sheet (NVL: TF32 835, BF16 1,671 with sparsity)")
_A100 = Peak(156.0, 312.0, "NVIDIA A100 data sheet")
_A40 = Peak(74.8, 149.7, "NVIDIA A40 data sheet")
_A10 = Peak(62.5, 125.0, "NVIDIA A10 data sheet")
_L4 = Peak(60.0, 121.0, "NVIDIA L4 data sheet (TF32 120, BF16 242 with sparsity)")
_L40 = Peak(90.5, 181.05, "NVIDIA L40 data sheet")
_L40S = Peak(183.0, 362.05, "NVIDIA L40S data sheet")
_RTX_3090 = Peak(35.6, 71.0, "NVIDIA GA102 architecture white paper, appendix A (sums in 32 bits)")
_RTX_4090 = Peak(82.6, 165.2, "NVIDIA Ada architecture white paper, appendix A (sums in 32 bits)")
_TURING = Peak(None, None, "NVIDIA T4 data sheet: tensor cores know FP16 alone")
_VOLTA = Peak(None, None, "NVIDIA V100 data sheet: tensor cores know FP16 alone")

PEAKS = {
    "NVIDIA H100 80GB HBM3": _H100_SXM,
    "NVIDIA H100 PCIe": _H100_PCIE,
    "NVIDIA H100 NVL": _H100_NVL,
    "NVIDIA H200": _H200_SXM,
    "NVIDIA H200 NVL": _H200_NVL,
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA A40": _A40,
    "NVIDIA A10": _A10,
    "NVIDIA L4": _L4,
    "NVIDIA L40": _L40,
    "NVIDIA L40S": _L40S,
    "NVIDIA GeForce RTX 3090": _RTX_3090,
    "NVIDIA GeForce RTX 4090": _RTX_4090,
    "Tesla T4": _TURING,
    "Tesla V100-SXM2-16GB": _VOLTA,
    "Tesla V100-SXM2-32GB": _VOLTA,
}


def peak(device: str, precision: str) -> float | None:
    """Return the dense peak of `device` in TFLOP/s for `precision`, "tf32" or "bf16"; None if it is unknown, or the format unsupported."""
    known = PEAKS.get(device)
    return None if known is None else {"tf32": known.tf32, "bf16": known.bf16}[precision]


def share(device: str, precision: str, tflops: float) -> float | None:
    """Return `tflops` as a fraction of the peak of `device` for `precision`; None if the peak is unknown."""
    most = peak(device, precision)
    return None if most is None else tflops / most
