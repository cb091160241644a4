"""The daemon's typed settings: every field, its unit, its default, and what it means.

Decides what may be set; knows nothing of what the settings are used for. Unknown keys are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from agent.calls import answer_within
from agent.engine_limits import EngineLimits
from agent.field_types import AnyPath, Folders, Seconds
from agent.naming import Name, NamingRule, NamingSettings
from agent.outlets import DashboardSettings, DicomOutSettings, MetricsSettings, MqttSettings
from agent.typed_yaml import Section, example_of, read_typed

__all__ = [
    "LimitSettings",
    "MqttSettings",
    "NamingRule",
    "NamingSettings",
    "Settings",
    "example_yaml",
    "load_settings",
]

ANSWER_LIMIT_S = 2.0
"""Longest wait for a file system while settings are checked: one that hangs must not keep the agent from starting."""


class WatchSettings(Section):
    """How changes in the folder are noticed."""

    mode: Literal["auto", "events", "scan"] = "auto"
    """`auto` scans network mounts and uses events plus scan on local folders; `events` and `scan` force one."""
    scan_interval_s: Seconds = 2.0
    """Seconds between two scans of the folder."""
    settle_s: Seconds = 1.0
    """A file that has not changed for this many seconds counts as settled."""
    stall_after_s: Seconds = 120.0
    """An acquisition without a new byte for this many seconds is stalled."""
    slide_quiet_s: Seconds = 20.0
    """A slide whose number of parts cannot be known is complete after this many quiet seconds."""
    read_slice_kib: int = Field(4096, ge=64)
    """Most KiB read from one file before the next file has its turn."""
    answer_limit_s: Seconds = 10.0
    """A folder that leaves one call unanswered for this many seconds counts as hanging, and an alert says so."""
    follow_symlinks: Folders = ()
    """Folders outside into which symbolic links may lead; links to anywhere else are not followed."""


class LimitSettings(Section):
    """What a file may ask for before it is refused (agent.formats.Limits)."""

    max_side_px: int = Field(65_535, gt=0)
    """Largest height or width of an image, pixels."""
    max_plane_bytes: int = Field(1 << 31, gt=0)
    """Largest decoded size of one plane, bytes."""
    max_segment_bytes: int = Field(1 << 28, gt=0)
    """Largest decoded size of one TIFF strip, TIFF tile or DICOM frame, bytes."""
    max_header_bytes: int = Field(1 << 24, gt=0)
    """Largest DICOM header or TIFF tag value, bytes."""
    max_tags: int = Field(4096, gt=0)
    """Most tags in one IFD, most elements in a DICOM header."""
    max_pages: int = Field(64, gt=0)
    """Most IFDs in one TIFF."""
    max_segments: int = Field(1 << 17, gt=0)
    """Most strips or tiles in one page of a TIFF."""


class PatientSettings(Section):
    """When a patient is finished; each way may be on or off."""

    quiet_s: Seconds = 900.0
    """A patient without a new byte for this many seconds is finished."""
    on_next: bool = True
    """Whether the first byte of the next patient finishes this one."""
    keep_days: float = Field(30.0, gt=0)
    """Days after a patient's final for which the ledger keeps single patches; what they amounted to is kept for
    ever, beside the finals."""


class LedgerSettings(Section):
    """The file in state_dir that remembers what was counted and said."""

    max_mib: int = Field(1024, ge=0)
    """Above so many MiB the single patches of patients who ended first go, whatever `patient.keep_days` says; 0 sets
    no limit. A thousand patches take about 60 KiB."""


class PipelineSettings(Section):
    """The rooms between bytes and messages."""

    batch_deadline_ms: float = Field(50.0, ge=0)
    """A batch that is not full is run after this many milliseconds."""
    handover_capacity: int = Field(16, ge=1)
    """Most items waiting between two rooms."""
    publish_interval_ms: float = Field(200.0, ge=0)
    """While work waits, posteriors are published at most once in this many milliseconds; finals at once."""
    stop_limit_s: Seconds = 10.0
    """Seconds that a clean stop may take to finish what is in hand."""


class EngineSettings(Section):
    """What runs the network."""

    order: tuple[str, ...] = Field(("openvino", "eager"), min_length=1)
    """Engines by preference: the first usable one runs, the next takes over when it breaks, and the reasons are
    told. An entry is a backend (`openvino`) or the beginning of an engine's folder (`openvino-int8`,
    `openvino-bf16-b32`); of several, those of the backend's batch in service come first, then the newest."""
    threads: int = Field(0, ge=0)
    """Threads of the engine; 0 takes every core."""
    batch_limit_s: float = Field(30.0, ge=0)
    """An engine that leaves one batch unanswered for this many seconds is replaced by the next; 0 sets no limit."""
    public_key: AnyPath | None = None
    """ed25519 public key (PEM). When set, a built engine without a valid signature by its private half is refused
    before anything of it is read (`python -m agent.build_trt --sign-with KEY`)."""
    limits: EngineLimits = EngineLimits()
    """What a built engine must keep, by precision; loosening one lets an engine run that is refused by default."""


class IdentitySettings(Section):
    """Pseudonyms: no patient identity leaves this machine."""

    key_file: AnyPath | None = None
    """Key of the pseudonyms; `identity.key` in state_dir when absent, made at the first start."""
    lookup_file: AnyPath | None = None
    """Local file that maps pseudonyms back to names; none is written when absent."""


class LogSettings(Section):
    """What is logged, to stderr."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` writes JSON under systemd and text on a terminal."""


class Settings(Section):
    """Everything that can be set."""

    folder: AnyPath
    """The imager's output folder, which is watched and never written to."""
    state_dir: AnyPath
    """Folder for what must survive a restart: the ledger and the pseudonyms' key."""
    profile: AnyPath
    """Folder of the profile: network weights, classes, calibration."""
    site: Name = "site"
    """Name of the site, part of every topic (letters, digits, _ and -)."""
    instrument: Name = "instrument"
    """Name of the instrument, part of every topic (letters, digits, _ and -)."""
    watch: WatchSettings = WatchSettings()
    """How changes in the folder are noticed."""
    naming: NamingSettings = NamingSettings()
    """How file names become patient, slide, strip and channel."""
    limits: LimitSettings = LimitSettings()
    """What a file may ask for before it is refused."""
    patient: PatientSettings = PatientSettings()
    """When a patient is finished."""
    ledger: LedgerSettings = LedgerSettings()
    """The file in state_dir that remembers what was counted and said."""
    pipeline: PipelineSettings = PipelineSettings()
    """The rooms between bytes and messages."""
    engine: EngineSettings = EngineSettings()
    """What runs the network."""
    mqtt: MqttSettings = MqttSettings()
    """Where results go."""
    identity: IdentitySettings = IdentitySettings()
    """Pseudonyms: no patient identity leaves this machine."""
    log: LogSettings = LogSettings()
    """What is logged, to stderr."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus metrics."""
    dashboard: DashboardSettings = DashboardSettings()
    """The screen in theatre (`python -m agent dashboard`)."""
    dicom_out: DicomOutSettings = DicomOutSettings()
    """Finals as DICOM objects (`python -m agent dicom-out`)."""

    @model_validator(mode="after")
    def _apart(self) -> Settings:
        folder, state_dir = _real(self.folder), _real(self.state_dir)
        if state_dir == folder or folder in state_dir.parents:
            raise ValueError("state_dir must lie outside the watched folder")
        if self.dicom_out.identity and self.identity.lookup_file is None:
            raise ValueError("dicom_out.identity needs identity.lookup_file, where the names are")
        results = self.dicom_out.folder
        if results is not None and folder in (_real(results), *_real(results).parents):
            raise ValueError("dicom_out.folder must lie outside the watched folder")
        return self


def _real(path: Path) -> Path:
    """The path without symbolic links, or as it was written when its file system does not answer."""
    return answer_within(ANSWER_LIMIT_S, path.resolve) or path


def load_settings(path: Path) -> Settings:
    """Read a settings file; relative paths start at its folder.

    Raises SettingsError with a line per problem: file, line, field, what is wrong, the value, a suggestion.
    """
    return read_typed(path, Settings, {"folder": path.parent.resolve()})


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the settings file, for editors."""
    schema = Settings.model_json_schema()
    for owner in (schema, *schema["$defs"].values()):
        for name, field in owner["properties"].items():
            if "$ref" in field:
                # A section whose every line is commented out reads as null.
                section = schema["$defs"][field["$ref"].rpartition("/")[2]]
                owner["properties"][name] = {
                    "anyOf": [{"$ref": field["$ref"]}, {"type": "null"}],
                    "description": section["description"],
                }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def example_yaml() -> str:
    """The text of configs/agent.yaml: every setting with its meaning and default."""
    head = (
        "# yaml-language-server: $schema=agent.schema.json\n"
        "# Settings of the agent. Relative paths start at this file's folder. folder, state_dir and profile\n"
        "# are yours to set; everything below them may be left out and is shown with its default.\n\n"
    )
    required = {"folder": "../imager", "state_dir": "../state", "profile": "profiles/phantom"}
    return head + example_of(Settings, required)
