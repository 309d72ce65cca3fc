"""Move rows on SQLite to PostgreSQL: python -m src.promote [--dry-run] [FILE ...]

Moved are the rows that were written while PostgreSQL was away, those that it refused before, and
those of app.db (or of the FILEs), which never move by themselves.
"""

import argparse
import sys
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from src.config.settings import load_settings
from src.database import handover, migrations, places, promotion
from src.database.commands import postgresql_for_commands
from src.database.errors import CAUSES, connection_reason
from src.database.sqlite_files import ASKED_FOR_FILE
from src.main import app  # noqa: F401  (registers every model)


def main() -> int:
    """Move the rows and say what became of them; return 1 if some stay behind."""
    parser = argparse.ArgumentParser(prog="python -m src.promote", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="only say what would be moved")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="an SQLite file")
    arguments = parser.parse_args()
    directories = places.directories(load_settings().sqlite_dir)
    files = handover.find("handover", directories) + handover.find("fallback", directories)
    files += arguments.files or [
        path for path in (one / ASKED_FOR_FILE for one in directories) if path.exists()
    ]
    refused = handover.find("promoted", directories)
    with postgresql_for_commands() as target:
        try:
            if arguments.dry_run:
                return _tell(files, refused, target)
            migrations.migrate(target)
            return _move(files, refused, target)
        except handover.Busy:
            sys.exit("The application is using these files: stop it, then try again.")
        except promotion.SchemasDiffer:
            sys.exit("The SQLite file has another revision than PostgreSQL: start the app once.")
        except SQLAlchemyError as error:
            sys.exit(f"Nothing more was moved: {CAUSES[connection_reason(error)]}.")


def _tell(files: list[Path], refused: list[Path], target: Engine) -> int:
    for file in files:
        if promotion.is_promoted(target, handover.id_of(file)):
            continue
        for name, count in promotion.count_rows(handover.read_only(file)).items():
            print(f"{file.name}: {name}: {count} rows would be moved")
    count = promotion.count_refused(target, [handover.id_of(file) for file in refused])
    print(f"{count} rows that were refused before would be tried again")
    return 0


def _move(files: list[Path], refused: list[Path], target: Engine) -> int:
    left = 0
    for file in refused:
        outcome = promotion.retry_refused(handover.read_only(file), target, handover.id_of(file))
        left += outcome.refused
        if outcome.moved or outcome.refused:
            print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused again")
    for file in files:
        with handover.owning([file]):
            outcome = handover.move(file, target)
        left += outcome.refused
        print(f"{file.name}: {outcome.moved} moved, {outcome.refused} refused")
    print("Refused rows stay in promoted-*.db; the log above names them." if left else "Done.")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
