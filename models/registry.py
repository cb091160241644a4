"""One line per modality. A new modality is one folder in models/ and one line here."""

from __future__ import annotations

from models.contract import Modality
from models.srh import SRH

MODALITIES: dict[str, Modality] = {modality.name: modality for modality in (SRH,)}
