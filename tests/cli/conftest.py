"""What several commands are tried on."""

import pytest


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a small bundle, and one of two films."""
    from tests.cli.tiny_lungs import films_in, tiny_lungs  # it needs packages that a test may skip without

    folder = tmp_path_factory.mktemp("site")
    return tiny_lungs(folder / "bundle"), films_in(folder / "films", 2)
