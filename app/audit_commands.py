"""`lethe audit`: the log of who did what when, taken out of the house and checked there."""

import json
import sys
from pathlib import Path
from typing import BinaryIO

import click

from app.audit import canonical
from app.audit.chain import Head
from app.audit.verify import Broken, read_head, verify
from app.client import Lethe
from app.display import json_option

output_option = click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.")


@click.group()
def audit() -> None:
    """The log of who did what, when: export it, keep its heads elsewhere, verify it offline."""


@audit.command("export")
@output_option
@click.option("--from", "first", type=int, default=1, show_default=True, help="Number of the first entry.")
@click.option("--to", "last", type=int, help="Number of the last entry (default: all).")
@json_option
def export(output: Path | None, first: int, last: int | None, as_json: bool) -> None:
    """Write the log as JSON lines, to a file or to stdout."""
    with Lethe() as lethe:
        pieces = lethe.audit_export(first, last)
        if output is None:
            for piece in pieces:
                click.echo(piece, nl=False)
            return
        partial = output.with_name(output.name + ".part")
        with partial.open("wb") as file:
            file.writelines(pieces)
        partial.replace(output)
    click.echo(
        json.dumps({"path": str(output)}) if as_json else f"The audit is in {output}: `lethe audit verify {output}`"
    )


@audit.command("head")
@output_option
@json_option
def show_head(output: Path | None, as_json: bool) -> None:
    """How many entries there are, and the hash that holds them all. Keep it where this deployment cannot change it."""
    with Lethe() as lethe:
        head = lethe.call("GET", "/v1/audit/head")
    if output is not None:
        with output.open("xb") as file:  # never over an earlier head: that is the one which finds a rewritten log
            file.write(canonical.encode(head) + b"\n")
    click.echo(json.dumps(head) if as_json else f"size {head['size']}, link {head['link']}, at {head['time']}")


@audit.command("verify")
@click.argument("exported", metavar="EXPORT", type=click.File("rb"))
@click.option("--since", multiple=True, type=click.File("rb"), help="An earlier head that must be on its way; repeat.")
@click.option("--against", type=click.File("rb"), help="The head that it must end with.")
@json_option
def check(exported: BinaryIO, since: tuple[BinaryIO, ...], against: BinaryIO | None, as_json: bool) -> None:
    """Whether EXPORT (- for stdin) is whole and unchanged. Needs no server. Exit status 1 and the first line that is wrong,
    if not."""
    try:
        earlier, end = [_head(file) for file in since], _head(against) if against else None
        found = verify(exported, earlier, end)
    except Broken as broken:
        wrong = {"ok": False, "line": broken.line, "seq": broken.seq, "problem": broken.problem}
        click.echo(json.dumps(wrong) if as_json else click.style(str(broken), fg="red"), err=not as_json)
        sys.exit(1)
    size, link, compared = found.head.size, found.head.link.hex(), len(earlier) + (end is not None)
    if as_json:
        click.echo(json.dumps({"ok": True, "from": found.first, "size": size, "link": link, "heads": compared}))
        return
    click.echo(f"whole and unchanged: entries {found.first} to {size}, link {link}")
    if not compared:
        click.echo("compared with no head from elsewhere: a log rewritten as a whole would look the same (--since)")


def _head(file: BinaryIO) -> Head:
    try:
        return read_head(file.read())
    except ValueError as error:
        raise click.ClickException(f"{file.name}: {error}") from None
