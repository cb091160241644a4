"""Where the contract holds: the topics and the broker of one instrument, from its settings or by default."""

from __future__ import annotations

import string
from dataclasses import dataclass, field

from agent.commands import COMMANDS
from agent.errors import SettingsError
from agent.outlets import MqttSettings
from agent.settings import Settings
from agent.topics import ROUTES, Route, Topics

TLS_PORT = 8883
PLAIN_PORT = 1883
MEANING = {
    "slide": "Pseudonym of the slide, as in the payload.",
    "patient": "Pseudonym of the patient, as in the payload.",
    "verb": "The command that is answered, or `unknown`.",
}
"""What each variable level of a topic stands for."""


@dataclass(frozen=True)
class Place:
    """One instrument's part of the topic tree, and its broker."""

    topics: Topics = field(default_factory=Topics)
    mqtt: MqttSettings = field(default_factory=MqttSettings)

    @property
    def agent_user(self) -> str:
        """The name under which the agent logs in; raises SettingsError for one that no access rule can hold."""
        name = self.mqtt.username or "agent"
        if not name.isprintable() or name != name.strip():
            raise SettingsError(f"mqtt.username: {name!r} cannot stand in a access rules: choose a plain name")
        return name

    @property
    def uses_tls(self) -> bool:
        """Whether the agent speaks TLS with its broker."""
        return self.mqtt.ca_file is not None

    @property
    def plain_port(self) -> int:
        """The broker's port for programs on its own machine."""
        return PLAIN_PORT if self.uses_tls else self.mqtt.port

    @property
    def tls_port(self) -> int:
        """The broker's port for the network."""
        return self.mqtt.port if self.uses_tls else TLS_PORT

    def address(self, route: Route) -> str:
        """The topic of a kind of payload, variable levels in braces."""
        return f"{self.topics.base}/{route.topic}"

    def filters(self) -> dict[str, str]:
        """Kind → the filter that matches its topics and no others."""
        wild = dict.fromkeys(MEANING, "+")
        return {kind: self.address(route).format(**wild) for kind, route in ROUTES.items()}

    def commands(self) -> dict[str, str]:
        """Verb → the topic of the command."""
        return {verb: self.topics.command(verb) for verb in COMMANDS}


def place_of(settings: Settings) -> Place:
    """The place that these settings name."""
    return Place(Topics(settings.mqtt.root, settings.site, settings.instrument), settings.mqtt)


def variables(address: str) -> dict[str, str]:
    """The variable levels of a topic and what each stands for."""
    return {name: MEANING[name] for _, name, _, _ in string.Formatter().parse(address) if name is not None}
