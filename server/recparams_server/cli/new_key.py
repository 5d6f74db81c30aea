"""`recparams new-key`: a key for an administrator or a caller, and its hash for the server."""

import json
import secrets

import click

from recparams_server.cli.connection import json_option
from recparams_server.cli.output import print_facts
from recparams_server.settings.callers import key_hash

KEY_BYTES = 32


@click.command("new-key")
@json_option
def new_key(as_json: bool) -> None:
    """Make a random key and its hash; nothing is stored or sent.

    The key goes to whoever calls (--admin-key, or x-api-key metadata), the hash to the server
    (--admin-key-hashes, or --callers). Several hashes at once let keys be changed one by one.

    \b
    recparams new-key
    """
    key = secrets.token_urlsafe(KEY_BYTES)
    facts = {"key": key, "hash": key_hash(key)}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        print_facts(facts.items())
