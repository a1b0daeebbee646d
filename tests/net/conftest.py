"""What tests of several parts of the network need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vhost_lan import Lan


@pytest.fixture
def lan() -> Iterator[Lan]:
    """A switch for vhost-user ports."""
    from vhost_lan import Lan

    made = Lan()
    yield made
    made.close()
