from __future__ import annotations

import net
from backbones.catalogue import BACKBONES, HEAD_NAMES
from head import HEADS


def test_names_match_what_can_be_built() -> None:
    assert list(BACKBONES) == list(net._BUILDERS)
    assert tuple(HEADS) == HEAD_NAMES
