"""Each mutation moves on with the code. Here only whether it can be made: what turns red is told by running them."""

import pytest

from tests.mutations.__main__ import ROOT, mutated
from tests.mutations.table import MUTATIONS, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_it_finds_what_it_changes(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text()
    assert mutated(mutation, source) != source
