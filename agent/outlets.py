"""Settings of what leads out of the process: broker, metrics, the screen in theatre, DICOM results."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from agent.field_types import AnyPath, Seconds, SecretPath
from agent.typed_yaml import Section

Verb = Literal["close-patient", "replay-state", "engine"]


class MqttSettings(Section):
    """Where results go."""

    host: str = Field("127.0.0.1", min_length=1)
    """Name or address of the broker."""
    port: int = Field(1883, ge=1, le=65_535)
    """TCP port of the broker."""
    root: str = Field("srh/v1", pattern=r"^[^/+#$\s]+(/[^/+#\s]+)*$")
    """Start of every topic; site and instrument follow it."""
    protocol: Annotated[
        Literal["auto", "5", "3.1.1"], BeforeValidator(lambda v: str(v) if isinstance(v, int) else v)
    ] = "auto"
    """MQTT version; `auto` tries 5 and falls back to 3.1.1."""
    username: str | None = None
    """User name at the broker."""
    password_file: SecretPath | None = None
    """File that holds the password and nothing else; `credential:NAME` takes what systemd gives the service by
    LoadCredential=NAME:FILE. The same holds for the three files below."""
    ca_file: SecretPath | None = None
    """Certificate authority (PEM) that the broker's certificate must come from; turns TLS on."""
    cert_file: SecretPath | None = None
    """Own certificate (PEM) for brokers that ask for one."""
    key_file: SecretPath | None = None
    """Private key (PEM) of `cert_file`."""
    keepalive_s: int = Field(15, ge=1, le=65_535)
    """Seconds of silence after which the connection is tested."""
    in_flight: int = Field(16, ge=1, le=65_535)
    """Most messages that the broker has not acknowledged yet."""
    puback_limit_s: Seconds = 20.0
    """Seconds without any acknowledgement, while some are due, after which the connection is made anew."""
    client_id: str | None = None
    """MQTT client identifier; made from site and instrument when absent."""
    health_interval_s: Seconds = 10.0
    """Seconds between two health messages."""
    commands: tuple[Verb, ...] = ()
    """Commands that are obeyed when they arrive at `cmd/<verb>`: close-patient, replay-state, engine. With none, the
    default, no command is listened to at all. Who may send them is for the broker's access rules
    (`python -m agent contract` writes them)."""

    @model_validator(mode="after")
    def _consistent(self) -> MqttSettings:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs a username")
        return self


class MetricsSettings(Section):
    """Prometheus metrics."""

    port: int | None = Field(None, ge=1, le=65_535)
    """TCP port on 127.0.0.1 that serves metrics; off when absent."""


class DashboardSettings(Section):
    """The screen in theatre (`python -m agent dashboard`)."""

    host: str = Field("127.0.0.1", min_length=1)
    """Address that it listens on; anybody who reaches it may see the results, so loopback by default."""
    port: int = Field(8080, ge=0, le=65_535)
    """TCP port of the page; 0 takes a free one."""
    names: tuple[str, ...] = ()
    """Further host names under which a browser may ask for the page, e.g. `theatre-3.example`."""
    username: str | None = None
    """User name at the broker of an account that only reads; mqtt.username when absent."""
    password_file: SecretPath | None = None
    """File that holds that account's password and nothing else; mqtt.password_file when absent."""

    def session(self, mqtt: MqttSettings) -> MqttSettings:
        """The session with the broker that the dashboard has: the agent's, under its own account if it has one."""
        own = {"username": self.username, "password_file": self.password_file}
        return mqtt.model_copy(update={name: value for name, value in own.items() if value is not None})


class DicomOutSettings(Section):
    """Finals as DICOM objects (`python -m agent dicom-out`)."""

    folder: AnyPath | None = None
    """Folder that takes the structured reports and heat maps; nothing is written when absent."""
    stow_url: str | None = Field(None, pattern=r"^https?://")
    """DICOMweb service to which each object is sent as well, e.g. `https://pacs.example/dicom-web`."""
    stow_ca_file: AnyPath | None = None
    """Certificate authority (PEM) of that service; the system's when absent."""
    stow_token_file: AnyPath | None = None
    """File that holds the bearer token for that service and nothing else."""
    identity: bool = False
    """Whether the objects carry the patient's and slide's real names, looked up in identity.lookup_file."""
    pixel_um: float = Field(0.5, gt=0)
    """Side of one pixel of the imager, micrometres: the scale of the heat map, and of nothing else."""

    @model_validator(mode="after")
    def _sendable(self) -> DicomOutSettings:
        if self.stow_url is not None and self.folder is None:
            raise ValueError("stow_url needs folder: objects are written there before they are sent")
        if self.stow_url is None and (self.stow_ca_file or self.stow_token_file):
            raise ValueError("stow_ca_file and stow_token_file need stow_url")
        if self.stow_token_file and not re.match(r"https:|http://(127\.0\.0\.1|localhost)[:/]", self.stow_url or ""):
            raise ValueError(
                "stow_token_file needs an https:// stow_url: on plain http everybody could read the token"
            )
        return self
