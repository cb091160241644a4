"""The AsyncAPI 3.0 document of one instrument: what the agent sends, and the commands that it receives.

Payloads are references to the schema files beside it, so that there is one copy of each.
"""

from __future__ import annotations

from typing import Any

import yaml

from agent.contract.place import Place, variables
from agent.contract.schemas import all_schemas
from agent.packets import MAX_INCOMING_BYTES
from agent.topics import ROUTES, SCHEMA_VERSION, Route

SCHEMA_FORMAT = "application/schema+json;version=2020-12"
BINDING = "0.2.0"
"""Version of the AsyncAPI MQTT binding."""
JSON = "application/json"
LICENCE = {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}
DESCRIPTION = """Running and final answers about stimulated Raman histology slides. Research use only.

Delivery is at least once: drop a message whose `event_id` you have seen. Everything that a receiver needs is in the
payload; the MQTT 5 properties (message expiry, content type, user property `schema`, correlation data) say nothing
more, so that MQTT 3.1.1 is enough. Patients, slides and files are pseudonyms. Fields may be added without a new
version: ignore those that you do not know. docs/mqtt.md of the agent is the guide to this.
"""
RESPONSE = (
    "Obeyed only when the agent's settings list it (mqtt.commands) and the broker lets the sender publish it. Send it"
    " without `retain`. The reply comes to `reply/<verb>`, or to the MQTT 5 Response Topic when that lies below"
    " `reply/`, with the command's Correlation Data."
)

Document = dict[str, Any]


class _Readable(yaml.SafeDumper):
    """Text of several lines keeps its lines."""


def _text(dumper: _Readable, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def asyncapi_yaml(place: Place) -> str:
    """The document as YAML."""
    text: str = yaml.dump(document(place), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=118)
    return text


def document(place: Place) -> Document:
    """The document."""
    schemas = all_schemas()
    said = [_ref("channels", kind) for kind in ROUTES]
    heard = [_ref("channels", f"cmd.{verb}") for verb in place.commands()]
    assert len(said) + len(heard) == len(schemas)
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:spinextract:{place.topics.base.replace('/', ':')}",
        "info": {
            "title": f"SpineXtract agent at {place.topics.base}",
            "version": str(SCHEMA_VERSION),
            "description": DESCRIPTION,
            "license": LICENCE,
        },
        "defaultContentType": JSON,
        "servers": {"broker": _server(place)},
        "channels": _channels(place, schemas),
        "operations": _operations(place, schemas),
        "components": {
            "messages": {name: _message(place, name, schema) for name, schema in schemas.items()},
            "securitySchemes": {
                "password": {"type": "userPassword", "description": "MQTT user name and password."},
                "certificate": {"type": "X509", "description": "TLS client certificate."},
            },
        },
    }


def _server(place: Place) -> Document:
    will = ROUTES["status"]
    return {
        "host": f"{place.mqtt.host}:{place.mqtt.port}",
        "protocol": "secure-mqtt" if place.uses_tls else "mqtt",
        "protocolVersion": "3.1.1" if place.mqtt.protocol == "3.1.1" else "5",
        "description": "The site's broker. MQTT 5, or 3.1.1 where the broker speaks nothing newer.",
        "security": [_ref("components", "securitySchemes", name) for name in ("password", "certificate")],
        "bindings": {
            "mqtt": {
                "cleanSession": True,
                "keepAlive": place.mqtt.keepalive_s,
                "lastWill": {
                    "topic": place.topics.status,
                    "qos": will.qos,
                    "retain": will.retain,
                    "message": "A `status` payload whose state is `offline`.",
                },
                "sessionExpiryInterval": 0,
                "maximumPacketSize": MAX_INCOMING_BYTES,
                "bindingVersion": BINDING,
            }
        },
    }


def _channels(place: Place, schemas: dict[str, Document]) -> Document:
    addresses = {kind: place.address(route) for kind, route in ROUTES.items()}
    addresses |= {f"cmd.{verb}": topic for verb, topic in place.commands().items()}
    channels = {}
    for name, address in addresses.items():
        channel: Document = {
            "address": address,
            "title": name,
            "description": schemas[name]["description"],
            "messages": {name: _ref("components", "messages", name)},
        }
        if places := variables(address):
            channel["parameters"] = {key: {"description": meaning} for key, meaning in places.items()}
        channels[name] = channel
    return channels


def _operations(place: Place, schemas: dict[str, Document]) -> Document:
    said = {
        f"send.{kind}": {
            "action": "send",
            "channel": _ref("channels", kind),
            "summary": _first_sentence(schemas[kind]["description"]),
            "bindings": {"mqtt": _travel(route)},
            "messages": [_ref("channels", kind, "messages", kind)],
        }
        for kind, route in ROUTES.items()
    }
    heard = {
        f"receive.cmd.{verb}": {
            "action": "receive",
            "channel": _ref("channels", f"cmd.{verb}"),
            "summary": _first_sentence(schemas[f"cmd.{verb}"]["description"]),
            "description": RESPONSE,
            "bindings": {"mqtt": {"qos": 1, "retain": False, "bindingVersion": BINDING}},
            "messages": [_ref("channels", f"cmd.{verb}", "messages", f"cmd.{verb}")],
            "reply": {
                "channel": _ref("channels", "reply"),
                "messages": [_ref("channels", "reply", "messages", "reply")],
            },
        }
        for verb in place.commands()
    }
    return {**said, **heard}


def _travel(route: Route) -> Document:
    expiry = {} if route.expiry_s is None else {"messageExpiryInterval": route.expiry_s}
    return {"qos": route.qos, "retain": route.retain, **expiry, "bindingVersion": BINDING}


def _message(place: Place, name: str, schema: Document) -> Document:
    binding: Document = {"payloadFormatIndicator": 1, "contentType": JSON}
    message: Document = {
        "name": name,
        "title": name,
        "summary": _first_sentence(schema["description"]),
        "contentType": JSON,
        "payload": {"schemaFormat": SCHEMA_FORMAT, "schema": {"$ref": f"./schemas/{name}.json"}},
    }
    if name in ROUTES:
        user_property = {"type": "string", "const": f"{name}.v{SCHEMA_VERSION}", "description": "User property."}
        message["headers"] = {"type": "object", "properties": {"schema": user_property}}
    else:
        binding |= {"responseTopic": f"{place.topics.base}/reply/{{receiver}}"}
    if name == "reply" or name not in ROUTES:
        message["correlationId"] = {
            "location": "$message.payload#/request_id",
            "description": "In MQTT 5 also the Correlation Data.",
        }
    return {**message, "bindings": {"mqtt": {**binding, "bindingVersion": BINDING}}}


def _ref(*path: str) -> Document:
    return {"$ref": "#/" + "/".join(path)}


def _first_sentence(text: str) -> str:
    return text.split("\n\n")[0].split(". ")[0].rstrip(".") + "."
