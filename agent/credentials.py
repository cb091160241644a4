"""The secrets of a broker session: password file, TLS files, systemd credentials, and what is wrong with them.

Read anew for every connection, so that a renewed file needs no restart. Knows no connection.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import stat
from pathlib import Path

from agent.errors import SettingsError
from agent.field_types import CREDENTIAL
from agent.settings import MqttSettings

CREDENTIALS_DIRECTORY = "CREDENTIALS_DIRECTORY"
"""Environment variable in which systemd names the folder of the service's credentials."""
SECRETS = ("password_file", "key_file")
_ADVICE = (
    ("certificate has expired", "the broker's certificate has expired: renew it (or is this machine's clock wrong?)"),
    ("not yet valid", "the broker's certificate is not valid yet: is this machine's clock right?"),
    ("mismatch", "the broker's certificate is for another name: set mqtt.host to a name that is in it"),
    ("certificate_verify_failed", "the broker's certificate does not come from the authority in mqtt.ca_file"),
    ("certificate required", "the broker asks for a client certificate: set mqtt.cert_file and mqtt.key_file"),
    ("alert unknown ca", "the broker does not know the authority of our certificate in mqtt.cert_file"),
    ("alert certificate expired", "our certificate in mqtt.cert_file has expired: renew it"),
    ("alert bad certificate", "the broker does not accept our certificate in mqtt.cert_file"),
    ("alert handshake failure", "the broker accepts neither our TLS version and ciphers nor our certificate"),
)
"""Words of OpenSSL → what they mean here, and what to do; the first that fits counts."""
_NO_TLS = ("wrong version number", "record layer failure", "connection reset", "eof occurred", "unexpected eof")


def password(settings: MqttSettings) -> str | None:
    """The password file's text without its final line break; raises SettingsError when it cannot be read."""
    if settings.password_file is None:
        return None
    path = located("password_file", settings.password_file)
    try:
        return path.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable("password_file", path, error) from error


def tls(settings: MqttSettings) -> ssl.SSLContext | None:
    """A context of TLS 1.2 or newer that verifies the broker's certificate and name; None without `ca_file`.

    Raises SettingsError naming the file that cannot be used.
    """
    if settings.ca_file is None:
        return None
    ca_file = located("ca_file", settings.ca_file)
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise _unusable("ca_file", ca_file, error) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.cert_file is not None and settings.key_file is not None:
        cert_file, key_file = located("cert_file", settings.cert_file), located("key_file", settings.key_file)
        try:
            # An empty password instead of a prompt: a service has nobody to ask.
            context.load_cert_chain(cert_file, key_file, password="")
        except OSError as error:
            raise _unusable("cert_file and key_file", cert_file, error) from error
    return context


def located(field: str, path: Path) -> Path:
    """Where a file lies, `credential:NAME` looked up among the service's credentials; raises SettingsError."""
    if not str(path).startswith(CREDENTIAL):
        return path
    name = str(path).removeprefix(CREDENTIAL)
    folder = os.environ.get(CREDENTIALS_DIRECTORY)
    if folder is None:
        raise SettingsError(
            f"mqtt.{field}: {path} is a credential of the service, and there is none: start the agent by systemd with"
            f" LoadCredential={name}:FILE, or name a file"
        )
    found = Path(folder, name)
    if not found.is_file():
        raise SettingsError(f"mqtt.{field}: {path}: the unit loads no such credential: add LoadCredential")
    return found


def exposures(settings: MqttSettings) -> list[str]:
    """What others could read, one sentence each: secret files open to everybody, a password sent in the clear."""
    found = []
    for field in SECRETS:
        path: Path | None = getattr(settings, field)
        if path is not None and _open_to_all(located(field, path)):
            found.append(f"mqtt.{field}: {path} can be read by every user of this machine: chmod o= {path}")
    if settings.password_file is not None and settings.ca_file is None and not _is_local(settings.host):
        found.append(f"mqtt.password_file: the password goes to {settings.host} unencrypted: set mqtt.ca_file")
    return found


def explain(trouble: str, settings: MqttSettings, *, reached: bool) -> str | None:
    """What a failure of TLS means and what to do; None for what has nothing to do with TLS.

    `reached`: the handshake was over. (A broker tells what it thinks of our certificate only then.)
    """
    if settings.ca_file is None:
        return None
    for words, advice in _ADVICE:
        if words in trouble.lower():
            return f"{advice} ({trouble})"
    if not reached and any(words in trouble.lower() for words in _NO_TLS):
        return f"no TLS is spoken at port {settings.port}: is it the broker's unencrypted port? ({trouble})"
    return None


def _open_to_all(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))
    except OSError:
        return False  # reading it will say why


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _unusable(field: str, path: Path, error: Exception) -> SettingsError:
    return SettingsError(f"mqtt.{field}: {path} cannot be used: {error}")
