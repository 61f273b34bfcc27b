"""What the new version says before it takes over."""

from pathlib import Path

from openlora.node.doctor.journal import JournalFacts
from openlora.node.journal_schema import MIGRATIONS
from openlora.node.upgrade import check_schema, check_upgrade
from tests.node.test_config import write

NOW = len(MIGRATIONS)


def test_the_journals_schema_decides(tmp_path: Path):
    path = tmp_path / "journal.sqlite"
    assert check_schema(JournalFacts(path, exists=False)).ok
    assert check_schema(JournalFacts(path, True, schema=NOW)).ok
    older = check_schema(JournalFacts(path, True, schema=NOW - 1))
    assert older.ok
    assert "backup" in older.said
    assert check_schema(JournalFacts(path, True, schema=NOW + 1)).fix == "keep the newer version"
    assert "restore" in check_schema(JournalFacts(path, True, schema=NOW, damage="a page")).fix


async def test_every_fault_is_told_and_nothing_raised(tmp_path: Path):
    config = write(tmp_path)
    checks = {check.about: check for check in await check_upgrade(config)}
    assert checks["configuration"].ok
    assert "deployment.json" in checks["contracts"].said
    assert not checks["contracts"].ok
    config.write_text(config.read_text().replace("poll_s", "pol_s"))
    faulty = {check.about: check for check in await check_upgrade(config)}
    assert "unknown key chain.pol_s" in faulty["configuration"].said
    assert set(faulty) == {"program", "configuration"}
