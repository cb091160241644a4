"""The only joiner: builds every room from the settings, starts three threads, and ends them in order.

The stop order is the way of the data: READER stops taking in, ENGINE finishes its batches, SENDER flushes and says
`stopped`. A room that dies ends the process with a non-zero code.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from agent import host
from agent.batching import Batcher
from agent.engine import choose
from agent.errors import AgentError
from agent.feeder import Feeder
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import Cancelled, CancelToken, Handover, Wakeup
from agent.health import Figures, Pulse
from agent.identity import Pseudonyms, load_or_create_key
from agent.layouts import Layouts
from agent.ledger import CountedPatch, FinalRow, Ledger, Record
from agent.messages import EngineRef
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
from agent.speech import Speech
from agent.topics import Topics
from agent.watch import Watch
from agent.worker import Work, Worker
from models.profile import Profile
from models.registry import MODALITIES

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
class _Memory:
    """What the ledger knows from before this start."""

    patches: list[CountedPatch]
    finals: list[FinalRow]


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
        settings = self._settings
        profile = load_profile_folder(settings.profile)
        choice = choose(settings.profile, profile, settings.engine.order, settings.engine.threads)
        self._resources.callback(choice.engine.close)
        engine = EngineRef(name=choice.engine.name, precision=choice.engine.precision)
        log.info(
            "engine",
            engine=engine.name,
            precision=engine.precision,
            batch=choice.engine.batch_size,
            passed_over=choice.passed_over,
        )
        ledger = Ledger.open(settings.state_dir / "ledger.sqlite")
        self._resources.callback(ledger.close)
        topics = Topics(settings.mqtt.root, settings.site, settings.instrument)
        speaker = Speaker(uuid.uuid4().hex, topics, profile, engine, lambda: datetime.now(UTC))
        speech = Speech(speaker, choice, ledger.next_boot(), datetime.now(UTC))
        memory = self._remember(ledger, profile.sha256)

        capacity, token = settings.pipeline.handover_capacity, self._token
        self._work: Handover[Work] = Handover("reader-engine", capacity, token)
        self._records: Handover[Record] = Handover("engine-sender", capacity, token)
        self._pulse = Pulse(self._work, self._records)
        wakeup = Wakeup(token)
        self._watch = Watch(
            settings.folder,
            mode=settings.watch.mode,
            scan_interval_s=settings.watch.scan_interval_s,
            follow_symlinks=settings.watch.follow_symlinks,
            wake=wakeup.set,
        )
        reader = self._reader(profile.spec, memory)
        batcher = Batcher(choice.engine.batch_size, settings.pipeline.batch_deadline_ms / 1e3)
        feeder = Feeder(reader, batcher, self._work, token, wakeup, beat=self._pulse.beats("reader"))
        reducer = Reducer(choice.engine, profile.spec, memory.patches)
        reducer.resume(memory.finals)
        worker = Worker(
            self._work,
            self._records,
            reducer,
            Reporter(reducer, speaker, memory.finals),
            profile.sha256,
            interval_s=settings.pipeline.publish_interval_ms / 1e3,
            beat=self._pulse.beats("engine"),
        )
        sender = self._sender(speech, ledger, feeder, reducer, reader)
        self._rooms = {"reader": feeder.run, "engine": worker.run, "sender": sender.run}

    def _remember(self, ledger: Ledger, sha256: str) -> _Memory:
        finals = ledger.finals(sha256)
        oldest = time.time() - 86_400 * self._settings.patient.keep_days
        pruned = ledger.prune(row.patient for row in finals if row.scope == "patient" and row.at < oldest)
        patches = list(ledger.restore(sha256))
        log.info("restored", patches=len(patches), pruned=pruned, finals=len(finals))
        return _Memory(patches, finals)

    def _reader(self, spec: Profile, memory: _Memory) -> Reader:
        settings = self._settings
        naming = Pseudonyms(
            load_or_create_key(settings.identity.key_file or settings.state_dir / "identity.key"),
            settings.identity.lookup_file,
        )
        return Reader(
            self._watch,
            Layouts(rules_of(settings.naming), naming, settings.naming.tags, settings.naming.tags_first_number),
            naming,
            MODALITIES[spec.modality].make_assembler(spec),
            open_parser,
            limits=Limits(**settings.limits.model_dump()),
            patience=patience_of(settings),
            counted=[row.key for row in memory.patches],
            finished=[row.of_slide for row in memory.finals if row.is_finished_slide],
            slice_bytes=settings.watch.read_slice_kib * 1024,
            beat=self._pulse.beats("reader"),
        )

    def _sender(self, speech: Speech, ledger: Ledger, feeder: Feeder, reducer: Reducer, reader: Reader) -> Sender:
        settings, speaker = self._settings, speech.speaker
        session = Session(
            settings.mqtt,
            client_id=f"spinextract-{settings.site}-{settings.instrument}",
            will=speech.status("offline"),
            wake=self._records.nudge,
            commands={speaker.topics.command(verb): verb for verb in settings.mqtt.commands},
        )
        figures = Figures(speaker, reducer, reader, self._watch, (self._work, self._records), session, ledger)
        if settings.metrics.port is not None:
            self._resources.callback(serve_metrics(settings.metrics.port, figures.health))
        return Sender(
            self._records,
            ledger,
            session,
            birth=lambda: speech.status("online"),
            stopped=lambda: speech.status("stopped"),
            health=figures.message,
            health_interval_s=settings.mqtt.health_interval_s,
            on_command=feeder.obey,
            in_flight=settings.mqtt.in_flight,
            flush_limit_s=settings.pipeline.stop_limit_s / 2,
            beat=self._pulse.beats("sender", figures.look),
        )

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
            if isinstance(error, OSError):
                error.filename = error.filename2 = None  # a path names a patient
            log.error("room_failed", room=name, exc_info=not isinstance(error, AgentError), error=str(error))
            self._token.fail(name, error)
