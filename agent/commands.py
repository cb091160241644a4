"""Bodies of the commands that arrive over MQTT (`cmd/<verb>`) and of their replies. Pure, like agent.messages."""

from __future__ import annotations

from models.profile import Frozen


class ClosePatient(Frozen):
    """Body of the command `cmd/close-patient`: this patient (null: everybody who is open) has ended."""

    patient: str | None = None
