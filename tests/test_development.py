"""What a development server leaves in its folder, and how commands find it."""

from pathlib import Path

import pytest

from recparams_server.cli.connection import DEFAULT_ADDRESS, admin_metadata, found_address
from recparams_server.development import findable, with_admin_key
from recparams_server.settings import Settings


@pytest.mark.parametrize("folder", [".recparams", ".recparams/demo"])
def test_commands_find_a_server_that_was_started_in_the_same_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECPARAMS_DATA_DIR", raising=False)
    settings = with_admin_key(Settings(data_dir=Path(folder), host="::1"))
    assert settings.admin_key is not None
    assert found_address() == DEFAULT_ADDRESS
    with findable(settings, 50077):
        assert found_address() == "[::1]:50077"
        assert admin_metadata(None) == (("x-admin-key", settings.admin_key.get_secret_value()),)
        assert (tmp_path / folder / "admin-key").stat().st_mode & 0o077 == 0
        assert admin_metadata("another") == (("x-admin-key", "another"),)
        monkeypatch.setenv("RECPARAMS_DATA_DIR", str(tmp_path / "elsewhere"))
        assert (found_address(), admin_metadata(None)) == (DEFAULT_ADDRESS, ())
        monkeypatch.delenv("RECPARAMS_DATA_DIR")
    assert found_address() == DEFAULT_ADDRESS


def test_a_server_on_a_database_of_its_own_leaves_no_address(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, database_url="postgresql://somebody@somewhere/db")
    with findable(settings, 50077):
        assert not list(tmp_path.iterdir())
