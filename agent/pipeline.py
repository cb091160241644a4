"""The only joiner: builds every room from the settings, starts three threads, and ends them in order.

The stop order is the way of the data: READER stops taking in, ENGINE finishes its batches, SENDER flushes and says
`stopped`. A room that dies ends the process with a non-zero code.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import structlog
from pydantic import ValidationError

from agent import host
from agent.batching import Batcher
from agent.engine import Choice, choose
from agent.errors import AgentError
from agent.feeder import Feeder
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import Cancelled, CancelToken, Handover, Wakeup
from agent.health import Figures, Pulse
from agent.identity import Pseudonyms, load_or_create_key
from agent.layouts import Layouts
from agent.ledger import Ledger, Record
from agent.messages import ClosePatient, EngineRef, Status
from agent.metrics import serve_metrics
from agent.naming import rules_of
from agent.profile_folder import load_profile_folder
from agent.publish import Session
from agent.reader import Reader
from agent.reducer import Reducer
from agent.reporter import Reporter, Speaker
from agent.roster import Patience
from agent.sender import Sender
from agent.settings import Settings
from agent.topics import Message, Topics
from agent.watch import Watch
from agent.worker import Work, Worker
from models.registry import MODALITIES

DISTRIBUTION = "spinextract-agent"
log = structlog.get_logger("agent")


def patience_of(settings: Settings) -> Patience:
    """The settings' limits of silence."""
    return Patience(
        settle_s=settings.watch.settle_s,
        stall_after_s=settings.watch.stall_after_s,
        slide_quiet_s=settings.watch.slide_quiet_s,
        patient_quiet_s=settings.patient.quiet_s,
        next_ends_patient=settings.patient.on_next,
    )


@dataclass(frozen=True)
class Speech:
    """The messages that speak of the process itself."""

    speaker: Speaker
    choice: Choice
    boot_seq: int
    since: datetime

    def status(self, state: str) -> Message:
        """Birth, clean end, or last will."""
        payload = Status.model_validate(
            {
                **self.speaker.stamp(),
                "state": state,
                "boot_seq": self.boot_seq,
                "version": version(DISTRIBUTION),
                "profile": self.speaker.profile_ref,
                "engine": self.speaker.engine,
                "passed_over": self.choice.passed_over,
                "since": self.since,
            }
        )
        return self.speaker.topics.message(payload)


class Pipeline:
    """The daemon: `run` blocks until it has ended and returns the exit code."""

    def __init__(self, settings: Settings, token: CancelToken) -> None:
        """Verify and load everything; raises AgentError before any thread has started."""
        self._settings = settings
        self._token = token
        self._resources = ExitStack()
        with ExitStack() as undo:
            undo.callback(self._resources.close)
            self._build()
            undo.pop_all()

    def _build(self) -> None:
        settings, token = self._settings, self._token
        profile = load_profile_folder(settings.profile)
        naming = Pseudonyms(
            load_or_create_key(settings.identity.key_file or settings.state_dir / "identity.key"),
            settings.identity.lookup_file,
        )
        choice = choose(settings.profile, profile, settings.engine.order, settings.engine.threads)
        self._resources.callback(choice.engine.close)
        engine = EngineRef(name=choice.engine.name, precision=choice.engine.precision)
        log.info("engine", **engine.model_dump(), batch=choice.engine.batch_size, passed_over=choice.passed_over)
        ledger = Ledger.open(settings.state_dir / "ledger.sqlite")
        self._resources.callback(ledger.close)

        topics = Topics(settings.mqtt.root, settings.site, settings.instrument)
        speaker = Speaker(uuid.uuid4().hex, topics, profile, engine, lambda: datetime.now(UTC))
        speech = Speech(speaker, choice, ledger.next_boot(), datetime.now(UTC))
        finals = ledger.finals(profile.sha256)
        oldest = time.time() - 86_400 * settings.patient.keep_days
        pruned = ledger.prune(row.patient for row in finals if row.scope == "patient" and row.at < oldest)
        restored = list(ledger.restore(profile.sha256))
        log.info("restored", patches=len(restored), pruned=pruned, finals=len(finals), boot_seq=speech.boot_seq)

        work: Handover[Work] = Handover("reader-engine", settings.pipeline.handover_capacity, token)
        records: Handover[Record] = Handover("engine-sender", settings.pipeline.handover_capacity, token)
        self._pulse = Pulse(work, records)
        wakeup = Wakeup(token)
        self._watch = Watch(
            settings.folder,
            mode=settings.watch.mode,
            scan_interval_s=settings.watch.scan_interval_s,
            follow_symlinks=settings.watch.follow_symlinks,
            wake=wakeup.set,
        )
        reader = Reader(
            self._watch,
            Layouts(rules_of(settings.naming), naming, settings.naming.tags, settings.naming.tags_first_number),
            naming,
            MODALITIES[profile.spec.modality].make_assembler(profile.spec),
            open_parser,
            limits=Limits(**settings.limits.model_dump()),
            patience=patience_of(settings),
            counted=[row.key for row in restored],
            finished=[row.of_slide for row in finals if row.is_finished_slide],
            slice_bytes=settings.watch.read_slice_kib * 1024,
        )
        batcher = Batcher(choice.engine.batch_size, settings.pipeline.batch_deadline_ms / 1e3)
        feeder = Feeder(reader, batcher, work, token, wakeup, beat=self._pulse.beats("reader"))
        reducer = Reducer(choice.engine, profile.spec, restored)
        reducer.resume(finals)
        worker = Worker(
            work,
            records,
            reducer,
            Reporter(reducer, speaker, finals),
            profile.sha256,
            interval_s=settings.pipeline.publish_interval_ms / 1e3,
            beat=self._pulse.beats("engine"),
        )
        commands = {topics.command("close-patient"): "close-patient"} if settings.patient.on_command else {}
        session = Session(
            settings.mqtt,
            client_id=f"spinextract-{settings.site}-{settings.instrument}",
            will=speech.status("offline"),
            wake=records.nudge,
            commands=commands,
        )
        figures = Figures(speaker, reducer, reader, self._watch, (work, records), session, ledger)
        sender = Sender(
            records,
            ledger,
            session,
            birth=lambda: speech.status("online"),
            stopped=lambda: speech.status("stopped"),
            health=figures.message,
            health_interval_s=settings.mqtt.health_interval_s,
            on_command=lambda verb, payload: _obey(verb, payload, feeder),
            in_flight=settings.mqtt.in_flight,
            flush_limit_s=settings.pipeline.stop_limit_s / 2,
            beat=self._pulse.beats("sender", figures.look),
        )
        if settings.metrics.port is not None:
            self._resources.callback(serve_metrics(settings.metrics.port, figures.health))
        self._rooms = {"reader": feeder.run, "engine": worker.run, "sender": sender.run}

    def run(self) -> int:
        """Work until the token stops; 0 after a clean end, 1 when a room died or the end took too long."""
        threads = [threading.Thread(target=self._room, args=item, name=item[0]) for item in self._rooms.items()]
        with self._resources:
            self._watch.start()
            for thread in threads:
                thread.start()
            host.notify(f"READY=1\nSTATUS=watching {self._settings.folder}")
            log.info("ready", folder=str(self._settings.folder))
            self._oversee(threads)
            self._watch.stop()
        if self._token.failure is not None:
            log.error("room_died", room=self._token.failed_room, error=str(self._token.failure))
            return 1
        if self._token.cancelled.is_set():
            log.error("stop_took_too_long", limit_s=self._settings.pipeline.stop_limit_s)
            return 1
        log.info("stopped")
        return 0

    def _oversee(self, threads: list[threading.Thread]) -> None:
        """Feed the service manager's watchdog while the rooms are alive; end them within the limit."""
        interval_s = host.watchdog_interval_s()
        deadline = None
        while any(thread.is_alive() for thread in threads):
            if interval_s is not None and self._pulse.is_healthy(2 * interval_s):
                host.notify("WATCHDOG=1")
            if self._token.stopping.is_set() and deadline is None:
                deadline = time.monotonic() + self._settings.pipeline.stop_limit_s
                host.notify("STOPPING=1")
                log.info("stopping", limit_s=self._settings.pipeline.stop_limit_s)
            if deadline is not None and time.monotonic() >= deadline:
                self._token.cancel()
            if self._token.stopping.is_set():
                next(thread for thread in threads).join(0.05)
                for thread in threads:
                    thread.join(0.05)
            else:
                self._token.stopping.wait(min(interval_s or 1.0, 1.0))

    def _room(self, name: str, run: Callable[[], None]) -> None:
        try:
            run()
        except Cancelled:
            log.debug("room_cancelled", room=name)
        except BaseException as error:
            log.error("room_failed", room=name, exc_info=not isinstance(error, AgentError), error=str(error))
            self._token.fail(name, error)


def _obey(verb: str, payload: bytes, feeder: Feeder) -> None:
    try:
        command = ClosePatient.model_validate(json.loads(payload or b"{}"))
    except (ValueError, ValidationError) as error:
        log.warning("bad_command", verb=verb, detail=str(error).splitlines()[0])
        return
    log.info("command", verb=verb, patient=command.patient)
    feeder.close_patient(command.patient)
