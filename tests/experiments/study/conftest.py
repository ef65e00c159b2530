"""What tests of studies share."""

import pytest


@pytest.fixture
def write(tmp_path):
    """Writes a study file and returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write
