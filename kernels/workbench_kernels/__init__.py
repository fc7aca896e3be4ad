"""The selective scan, SSD and the short causal convolution in JAX, whole sequences or one token at a time."""

from workbench_kernels.causal_conv1d import causal_conv1d
from workbench_kernels.implementation import Implementation, platform, recorded, resolve
from workbench_kernels.selective_scan import selective_scan, selective_scan_step
from workbench_kernels.ssd import ssd, ssd_step

__version__ = "0.1.0"

__all__ = [
    "Implementation",
    "causal_conv1d",
    "platform",
    "recorded",
    "resolve",
    "selective_scan",
    "selective_scan_step",
    "ssd",
    "ssd_step",
]
