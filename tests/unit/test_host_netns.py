"""What a container is called, and what is refused as one."""

from __future__ import annotations

import os

import pytest

from weavenet.core.errors import WeaveError
from weavenet.core.limits import IDENT_BYTES_MAX
from weavenet.host import netns


@pytest.mark.parametrize("reference", ["pid:{own}", f"netns:{'x' * (IDENT_BYTES_MAX + 1)}", f"pid:{'9' * 5000}", "web"])
def test_refusals_say_what_was_expected(reference: str) -> None:
    reference = reference.format(own=os.getpid())  # not in the parameter, which names the test in every process
    with pytest.raises(WeaveError) as caught, netns.resolve(reference, None):
        pass
    assert caught.value.failure.expected.startswith("expected ")
    assert reference[:200] in caught.value.failure.found
