"""Lets torchvision import beside a CPU torch whose operators its binary does not match.

``python torchvision_shim.py --install`` copies this file into site-packages with a ``.pth`` that loads it. It costs
nothing until ``import torchvision``; where torchvision's own operators load, it does nothing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys

_ROIS = "Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width"
_SIZES = "SymInt batch_size, SymInt channels, SymInt height, SymInt width"
_DEFORM = (
    "Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, "
    "SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask"
)
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    f"roi_align(Tensor input, {_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"qroi_align(Tensor input, {_ROIS}, int sampling_ratio, bool aligned) -> Tensor",
    f"roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"ps_roi_align(Tensor input, {_ROIS}, int sampling_ratio) -> (Tensor, Tensor)",
    f"ps_roi_pool(Tensor input, {_ROIS}) -> (Tensor, Tensor)",
    f"deform_conv2d(Tensor input, Tensor weight, {_DEFORM}) -> Tensor",
    f"_roi_align_backward(Tensor grad, {_ROIS}, {_SIZES}, int sampling_ratio, bool aligned) -> Tensor",
    f"_roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, {_ROIS[13:]}, {_SIZES}) -> Tensor",
    f"_ps_roi_align_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_ROIS[13:]}, int sampling_ratio, {_SIZES})"
    " -> Tensor",
    f"_ps_roi_pool_backward(Tensor grad, Tensor rois, Tensor channel_mapping, {_ROIS[13:]}, {_SIZES}) -> Tensor",
    f"_deform_conv2d_backward(Tensor grad, Tensor input, Tensor weight, {_DEFORM})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)


class TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Declares the missing operators just before torchvision is imported."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_missing()
        return


def declare_missing() -> None:
    """Load torchvision's own operators; where that fails, declare their schemas (without kernels)."""
    import torch

    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    folder = spec.submodule_search_locations[0]
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        try:
            torch.ops.load_library(f"{folder}/_C{suffix}")
        except OSError:
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    torch._convaudit_torchvision_schemas = library  # schemas live as long as their Library


def install() -> None:
    """Copy this file and a ``.pth`` that loads it into this interpreter's site-packages."""
    import shutil
    import sysconfig
    from pathlib import Path

    site = Path(sysconfig.get_paths()["purelib"])
    shutil.copy(__file__, site / "convaudit_dev_torchvision_shim.py")
    (site / "convaudit_dev_torchvision_shim.pth").write_text("import convaudit_dev_torchvision_shim\n")


if __name__ == "__main__":
    install()
else:
    sys.meta_path.insert(0, TorchvisionFinder())
