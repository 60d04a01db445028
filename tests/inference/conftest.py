"""What tests of predictions share."""

import pytest

from tlkeras.inference import sharded
from tlkeras.runs.directory import open_run


@pytest.fixture(scope="module")
def one_engine(trained):
    """The engine is made once for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        model = sharded.load_model(open_run(str(trained), trained.parent))
        engine = sharded.make_engine(model)
        patch.setattr(sharded, "load_model", lambda run: model)
        patch.setattr(sharded, "make_engine", lambda model: engine)
        yield
