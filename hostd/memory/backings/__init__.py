"""What a row can map: one small file each."""

from __future__ import annotations

from hostd.memory.backings.anonymous import Anonymous
from hostd.memory.backings.base import Backing
from hostd.memory.backings.device import Device
from hostd.memory.backings.file import SharedFile
from hostd.memory.backings.hugetlb import Hugetlb
from hostd.memory.backings.image import Image
from hostd.memory.backings.region import RegionBacking
from hostd.memory.backings.shared import RamFile, Shared

__all__ = ["Anonymous", "Backing", "Device", "Hugetlb", "Image", "RamFile", "RegionBacking", "Shared", "SharedFile"]
