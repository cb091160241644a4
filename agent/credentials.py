"""The secrets of a broker session, read once at start: password file and TLS files. Knows no connection."""

from __future__ import annotations

import ssl
from pathlib import Path

from agent.errors import SettingsError
from agent.settings import MqttSettings


def password(settings: MqttSettings) -> str | None:
    """The password file's text without its final line break; raises SettingsError when it cannot be read."""
    if settings.password_file is None:
        return None
    try:
        return settings.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable("password_file", settings.password_file, error) from error


def tls(settings: MqttSettings) -> ssl.SSLContext | None:
    """A TLS context that verifies the broker's certificate and name, or None when `ca_file` is not set.

    Raises SettingsError naming the file that cannot be used.
    """
    if settings.ca_file is None:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise _unusable("ca_file", settings.ca_file, error) from error
    if settings.cert_file is not None:
        try:
            # An empty password instead of a prompt: a service has nobody to ask.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
        except OSError as error:
            raise _unusable("cert_file and key_file", settings.cert_file, error) from error
    return context


def _unusable(field: str, path: Path, error: Exception) -> SettingsError:
    return SettingsError(f"mqtt.{field}: {path} cannot be used: {error}")
