"""Access rules and an example configuration for mosquitto, from the topics of one instrument.

Whoever is not named gets nothing. The agent may write what it says and read its commands; nobody else may write
results; only operators may send commands that change anything.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from agent.contract.place import Place

FOLDER = "/etc/mosquitto/spinextract"
"""Where the example expects its files."""
PACKET_LIMIT_BYTES = 65_536
"""What the broker takes at once; posteriors stay below 4 kB, and heat map arrays below 2 kB for 60 patches."""
READERS_DO_NOT_NEED = {"reply"}
"""Kinds that only those who send commands read."""


def access_rules(place: Place) -> str:
    """The text of mosquitto.acl."""
    filters, base = place.filters(), place.topics.base
    results = [rule for kind, rule in filters.items() if kind not in READERS_DO_NOT_NEED]
    commands = place.commands()
    sections = [
        _comment(
            f"Who may do what below {base}. Written by `python -m agent contract`: after an update of the agent write"
            " it again and compare. Topics that are not listed are closed, to everybody. Users are those of the"
            " password file, or the common names (CN) of client certificates; a second person or screen needs a user"
            " of its own with the same lines."
        ),
        _comment("The agent itself: says everything, hears commands, and its own status (to correct a late will)."),
        _user(
            place.agent_user,
            write=[*results, f"{base}/reply/#"],
            read=[place.topics.commands, place.topics.status],
        ),
        _comment("Screens and archives: they read. All they may ask for is to be told again what they have missed."),
        _user("dashboard", read=results, write=[commands["replay-state"]]),
        _comment(
            "People who may send commands. The agent obeys those that its settings list under mqtt.commands; delete"
            " here what nobody should be able to ask for."
        ),
        _user("operator", read=[*results, f"{base}/reply/#"], write=commands.values()),
    ]
    return "\n\n".join(sections) + "\n"


def configuration(place: Place) -> str:
    """The text of mosquitto.conf."""
    return CONFIGURATION.format(
        base=place.topics.base,
        folder=FOLDER,
        user=place.agent_user,
        plain=place.plain_port,
        tls=place.tls_port,
        largest=PACKET_LIMIT_BYTES,
    )


def _user(name: str, *, read: Iterable[str] = (), write: Iterable[str] = ()) -> str:
    rules = [*(f"topic write {topic}" for topic in write), *(f"topic read {topic}" for topic in read)]
    return "\n".join([f"user {name}", *rules])


def _comment(text: str) -> str:
    return textwrap.fill(text, 116, initial_indent="# ", subsequent_indent="# ")


CONFIGURATION = """\
# mosquitto 2.0 or newer, for the agent at {base}.
# Written by `python -m agent contract`: an example to read and change. How to put it in place:
#
#   install -d -m 750 -g mosquitto {folder}
#   install -m 640 -g mosquitto mosquitto.acl {folder}/access
#   mosquitto_passwd -c {folder}/passwords {user}       asks for the password; then, without -c,
#   mosquitto_passwd {folder}/passwords dashboard       each further user of the access rules
#   chgrp mosquitto {folder}/passwords && chmod 640 {folder}/passwords
#   install -m 644 mosquitto.conf /etc/mosquitto/conf.d/spinextract.conf && systemctl restart mosquitto

# Nobody comes in without a name, and a name may do what the access rules say.
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/access

# Retained results survive a restart. (The agent says them again when it connects; this is for when it is off.)
persistence true
autosave_interval 60

# Small messages leave at once: without this each may wait 40 ms for the one before.
set_tcp_nodelay true

# Bounds. The agent's own messages are far smaller than this. At most so much waits for one client, which is away or
# has just subscribed to years of retained results. A session whose client does not return is forgotten after a day.
max_packet_size {largest}
max_queued_messages 10000
max_queued_bytes 67108864
persistent_client_expiration 1d

# 1. Programs on this machine: user name and password, no TLS, not reachable from outside.
listener {plain} 127.0.0.1

# 2. The network: TLS, and each client shows a certificate of your authority. Its common name (CN) is its user name,
#    so it needs no password. In the agent's settings: mqtt.ca_file, cert_file, key_file, and port {tls}.
#    For passwords over TLS instead: delete the two lines below keyfile.
listener {tls}
cafile {folder}/ca.crt
certfile {folder}/broker.crt
keyfile {folder}/broker.key
require_certificate true
use_identity_as_username true
# crlfile {folder}/revoked.crl
"""
