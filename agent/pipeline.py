"""The only joiner: builds every room from the settings; agent.overseer runs them.

The stop order is the way of the data: READER stops taking in, ENGINE finishes its batches, SENDER flushes and says
`stopped`. A room that dies ends the process with a non-zero code.
"""

from __future__ import annotations

import uuid
from contextlib import ExitStack
from datetime import UTC, datetime

import structlog

from agent import discretion, host
from agent.answering import Answering
from agent.audit_trail import AuditTrail
from agent.batching import Batcher
from agent.catch_up import CatchUp
from agent.command_desk import CommandDesk
from agent.engine.service import Service
from agent.feeder import Feeder
from agent.formats import Limits
from agent.formats.detect import open_parser
from agent.handover import CancelToken, Handover, Wakeup
from agent.health import Figures
from agent.identity import Pseudonyms, load_or_create_key
from agent.layouts import Layouts
from agent.ledger import Ledger, Record
from agent.ledger_rescue import open_ledger
from agent.ledger_upkeep import keeping_up
from agent.measures import EngineMeasures, SenderMeasures
from agent.memory import Memory
from agent.metrics import serve_metrics
from agent.naming import rules_of
from agent.overseer import oversee
from agent.patience import Patience
from agent.publish import Session
from agent.pulse import Pulse
from agent.reader import Reader
from agent.reducer import Reducer
from agent.reload import LiveSettings
from agent.reporter import Reporter, Speaker
from agent.sender import Sender
from agent.settings import Settings
from agent.speech import Speech, tell_engine
from agent.spool import MOST_WAITING
from agent.spooler import spooling
from agent.topics import Topics
from agent.watch import Watch
from agent.worker import Work, Worker
from models.profile import LoadedProfile, Profile
from models.registry import MODALITIES

log = structlog.get_logger("agent")


def _follow(
    now: Settings, watch: Watch, patience: Patience, batcher: Batcher, worker: Worker, sender: Sender
) -> None:
    """Give the rooms the settings that agent.reload.LIVE lists."""
    host.set_level(now.log.level)
    watch.scan_interval_s = now.watch.scan_interval_s
    for name, value in vars(Patience.of(now)).items():
        setattr(patience, name, value)
    batcher.deadline_s = now.pipeline.batch_deadline_ms / 1e3
    worker.interval_s = now.pipeline.publish_interval_ms / 1e3
    sender.health_interval_s = now.mqtt.health_interval_s


def _session_id() -> str:
    """Short, since it is in every message, small heat map arrays too."""
    return uuid.uuid4().hex[:16]


class Pipeline:
    """The daemon: `run` blocks until it has ended and returns the exit code."""

    def __init__(self, live: LiveSettings, token: CancelToken, profile: LoadedProfile, engine: Service) -> None:
        """Take over the engine, and open everything else; raises AgentError before any room has started."""
        self._live = live
        self._settings = live.now
        self._token = token
        self._resources = ExitStack()
        self._resources.callback(engine.close)
        with ExitStack() as undo:
            undo.callback(self._resources.close)
            self._build(profile, engine)
            undo.pop_all()

    def _build(self, profile: LoadedProfile, engine: Service) -> None:
        settings = self._settings
        ledger, rescue = open_ledger(settings.state_dir / "ledger.sqlite", settings.patient.keep_days)
        self._resources.callback(ledger.close)
        topics = Topics(settings.mqtt.root, settings.site, settings.instrument)
        speaker = Speaker(_session_id(), topics, profile, tell_engine(engine.choice), lambda: datetime.now(UTC))
        speech = Speech(speaker, engine.choice, ledger.next_boot(), datetime.now(UTC))
        self._trail = AuditTrail(ledger.audit, self._live, speech)
        self._keep_up = keeping_up(settings, ledger, speaker, rescue)
        memory = Memory.of(ledger, profile.sha256)
        self._keep_results = spooling(settings, profile.spec, ledger)

        capacity, token = settings.pipeline.handover_capacity, self._token
        self._work: Handover[Work] = Handover("reader-engine", capacity, token)
        self._records: Handover[Record] = Handover("engine-sender", capacity, token)
        self._pulse = Pulse(self._work, self._records)
        self._measures = EngineMeasures(), SenderMeasures()
        wakeup = Wakeup(token)
        self._watch = Watch(
            settings.folder,
            mode=settings.watch.mode,
            scan_interval_s=settings.watch.scan_interval_s,
            follow_symlinks=settings.watch.follow_symlinks,
            wake=wakeup.set,
        )
        reader = self._reader(profile.spec, memory)
        batcher = Batcher(engine.batch_size, settings.pipeline.batch_deadline_ms / 1e3)
        feeder = Feeder(reader, batcher, self._work, token, wakeup, beat=self._pulse.beats("reader"))
        engine.beat = beat = self._pulse.beats("engine")
        reducer = Reducer(
            engine,
            profile.spec,
            memory.patches,
            profile.reference,
            self_test=engine.self_test,
            next_engine=engine.next_engine,
        )
        reducer.resume(memory.finals)
        reporter = Reporter(reducer, speaker, memory.finals)
        worker = Worker(
            self._work,
            self._records,
            reducer,
            reporter,
            profile.sha256,
            interval_s=settings.pipeline.publish_interval_ms / 1e3,
            beat=beat,
            wall=speaker.wall,
            measures=self._measures[0],
        )
        engine.replaced = lambda change: worker.replaced(change.detail, speech.take_over(engine.choice))
        # Before anybody can see the last start's: nothing is on the table until something arrives.
        ledger.append(Record(profile.sha256, messages=(reporter.current(None),)))
        sender = self._sender(speech, ledger, feeder, reducer, reader)
        self._live.follow(lambda now: _follow(now, self._watch, self._patience, batcher, worker, sender))
        self._rooms = {"reader": feeder.run, "engine": worker.run, "sender": sender.run}

    def _reader(self, spec: Profile, memory: Memory) -> Reader:

        settings = self._settings
        self._patience = Patience.of(settings)
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
            patience=self._patience,
            counted={row.key: row.pixels for row in memory.patches},
            finished=memory.finished,
            files=memory.files,
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
            commands=speaker.topics.commands if settings.mqtt.commands else None,
        )
        desk = CommandDesk(
            settings.mqtt.commands,
            speaker,
            close_patient=feeder.close_patient,
            catch_up=CatchUp(ledger, speaker, lambda: speech.status("online")),
            engine=lambda: speech.engine(settings.profile),
        )
        answering = Answering(self._pulse, lambda: self._live.now.watch.answer_limit_s, speech, ledger)
        handovers = (self._work, self._records)
        figures = Figures(
            speech, reducer, reader, self._watch, handovers, session, ledger, *self._measures, answering
        )
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
            on_command=desk.take,
            contradicts=speech.is_contradicted_by,
            alert=speech.refused,
            in_flight=settings.mqtt.in_flight,
            puback_limit_s=settings.mqtt.puback_limit_s,
            flush_limit_s=settings.pipeline.stop_limit_s / 2,
            beat=self._pulse.beats(
                "sender", answering.look, figures.look, self._trail.look, self._keep_up, lambda: self._keep_results(1)
            ),
            measures=self._measures[1],
        )

    def run(self) -> int:
        """Work until the token stops; 0 after a clean end, 1 when a room died or the end took too long."""
        with self._resources:
            watch = self._watch
            all_ended = oversee(
                self._rooms,
                self._token,
                self._pulse,
                self._live,
                has_looked=lambda: watch.scanned_once or watch.unavailable is not None,
                give_up=self._work.close,
            )
            if all_ended:
                watch.stop()
            if self._token.failure is None and not self._token.cancelled.is_set():
                self._keep_results(MOST_WAITING)  # the last finals; no room owns the ledger any more
                self._trail.end()
        if self._token.failure is not None:
            log.error("room_died", room=self._token.failed_room, error=discretion.told(self._token.failure))
            return 1
        if self._token.cancelled.is_set():
            log.error("stop_took_too_long", limit_s=self._live.now.pipeline.stop_limit_s)
            return 1
        if all_ended:
            log.info("stopped")
        return 0 if all_ended else 1
