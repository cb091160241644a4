"""`python -m agent demo`: the real agent on this machine, fed by a synthetic imager, with dashboard and live view.

Everything is a real part: an embedded MQTT broker, agent and dashboard as processes of their own, files that grow in
a folder, and a view that is an ordinary subscriber. The slides are a synthetic phantom, not tissue.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import yaml
from rich.console import Console
from rich.live import Live

from agent import host
from agent.demo_broker import EmbeddedBroker, free_port
from agent.demo_processes import DashboardProcess, agent_process, ended_by_sigterm, last_line
from agent.demo_view import Board, Subscriber
from agent.engine import choose
from agent.errors import AgentError, EngineError, SettingsError
from agent.identity import Pseudonyms, load_or_create_key
from agent.imager import BYTES_PER_S, LAYOUTS, write_growing
from agent.phantom_command import FIRST_SEED, NamedPhantom, files_of, named_phantoms
from agent.profile_folder import load_profile_folder
from models.contract import SlideKey
from models.srh.phantom import CLASSES, STRIPS_BY_HEIGHT

HELP = """Runs everything on this machine: an embedded MQTT broker, a synthetic imager that writes scan strips into a
folder at the imager's pace, the agent watching that folder, the dashboard (the screen in theatre) as a web page, and
a live view here. The page opens by itself where there is a display.

The slides are a synthetic phantom, not tissue: being right on them says nothing about patients.

example:
  python -m agent demo                   four slides at the imager's pace, about a minute
  python -m agent demo --rate 4          four times faster
  python -m agent demo --headless        plain lines; opens no browser, ends by itself
"""
START_LIMIT_S = 120.0
SILENCE_LIMIT_S = 60.0
QUIET_S = 3.0
"""A patient of the demo has ended after this much silence."""


def default_profile() -> Path:
    """The phantom profile that ships with the agent: beside the packages in a checkout, inside agent/ in a wheel."""
    here = Path(__file__).resolve().parent
    places = [here.parent / "configs" / "profiles" / "phantom", here / "configs" / "profiles" / "phantom"]
    for place in places:
        if (place / "profile.yaml").is_file():
            return place
    raise AgentError(f"the phantom profile is missing ({places[0]}); run `make phantom-profile` or pass --profile")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent demo`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--headless", action="store_true", help="plain lines instead of the live view")
    parser.add_argument("--no-browser", action="store_true", help="only print where the dashboard's page is")
    parser.add_argument("--slides", type=int, default=4, metavar="N", help="how many slides (4)")
    parser.add_argument("--rate", type=float, default=1.0, metavar="X", help="times the imager's pace (1)")
    parser.add_argument(
        "--seed", type=int, default=FIRST_SEED, metavar="S", help="seed of the first slide (%(default)s)"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="strips-b", help="files and names (strips-b)")
    parser.add_argument(
        "--height", type=int, default=2000, choices=sorted(STRIPS_BY_HEIGHT), help="rows of a scan strip (2000)"
    )
    parser.add_argument("--profile", type=Path, metavar="DIR", help="profile folder (the phantom profile)")
    parser.add_argument(
        "--dir", type=Path, metavar="DIR", help="keep folder, ledger and log here (a temporary folder)"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="P", help="port of the broker on 127.0.0.1 (a free one)"
    )


def main(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code. Raises AgentError."""
    if args.slides < 1 or not 0 < args.rate < 1e6 or args.seed < 0:
        raise SettingsError("--slides must be at least 1, --rate above 0 and --seed at least 0")
    host.configure_logging("warning", "console")
    profile = args.profile or default_profile()
    console = Console(highlight=False)
    console.print("[bold]spinextract-agent demo[/bold]: synthetic phantom slides, not tissue. Research use only.")
    with ended_by_sigterm(), contextlib.ExitStack() as stack:
        if args.dir and args.dir.exists() and any(args.dir.iterdir()):
            raise SettingsError(f"{args.dir} is not empty: give a new folder, or none for a temporary one")
        home = args.dir or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spinextract-demo-")))
        _build_engine(profile, console)
        port = args.port or free_port()
        stack.enter_context(EmbeddedBroker(port))
        config = write_config(home, profile, port)
        key = load_or_create_key(home / "state" / "identity.key")
        slides = named_phantoms(args.slides, args.seed, args.height)
        board = Board(_truth(slides, Pseudonyms(key)), started=time.monotonic())
        stack.enter_context(Subscriber(port, board))
        page = stack.enter_context(DashboardProcess(config, home, open_page=_may_open_a_browser(args)))
        agent = stack.enter_context(agent_process(config, home / "agent.log"))
        console.print(f"broker 127.0.0.1:{port}, folder {home / 'imager'}, agent log {home / 'agent.log'}")
        console.print(page.announcement(), soft_wrap=True)
        _wait_until_ready(board, agent, home / "agent.log")
        console.print(f"agent ready: {board.status_line()}")
        imager = stack.enter_context(_imager(home / "imager", slides, args, board))
        _show(board, agent, imager, console, headless=args.headless)
        _verdict(board, console)
        if page.url and not args.headless and sys.stdin.isatty():
            with contextlib.suppress(EOFError, KeyboardInterrupt):
                console.input("The page stays until you press Enter. ")
    return 0


def _may_open_a_browser(args: argparse.Namespace) -> bool:
    """Whether there is a display and nobody minds."""
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(display) and not args.headless and not args.no_browser


def _build_engine(folder: Path, console: Console) -> None:
    """Compile the profile when nothing built fits this machine. Where that fails the agent runs eager and says so."""
    try:
        engine = choose(folder, load_profile_folder(folder), ["openvino"], 0).engine
    except EngineError:
        with console.status("compiling the network for this machine (once, about half a minute)"):
            command = [sys.executable, "-m", "agent.build_trt", "--profile", str(folder), "--json"]
            built = subprocess.run(command, capture_output=True, text=True)
        console.print("engine compiled" if built.returncode == 0 else built.stderr.strip(), soft_wrap=True)
    else:
        engine.close()


def write_config(home: Path, profile: Path, port: int) -> Path:
    """Write the demo's settings file; the folder and the state live below `home`."""
    for name in ("imager", "state"):
        (home / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "folder": str(home / "imager"),
        "state_dir": str(home / "state"),
        "profile": str(profile.resolve()),
        "site": "demo",
        "instrument": "phantom",
        "patient": {"quiet_s": QUIET_S},
        # amqtt speaks 3.1.1 only; `auto` would find that out, but only after some seconds.
        # The dashboard asks for the heat map again when it starts in the middle of a slide.
        "mqtt": {"port": port, "protocol": "3.1.1", "health_interval_s": 0.5, "commands": ["replay-state"]},
        "log": {"format": "json"},
    }
    path = home / "agent.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def _truth(slides: list[NamedPhantom], naming: Pseudonyms) -> dict[SlideKey, tuple[str, str]]:
    """Pseudonyms, as the agent will call them → the slide's name for people and its true class."""
    return {
        SlideKey(naming.of("patient", s.patient), naming.of("slide", s.patient, s.slide)): (
            f"{s.patient}/{s.slide}",
            CLASSES[s.source.label],
        )
        for s in slides
    }


@contextlib.contextmanager
def _imager(
    folder: Path, slides: list[NamedPhantom], args: argparse.Namespace, board: Board
) -> Iterator[threading.Thread]:
    """A synthetic imager on a thread of its own; it stops in the middle of a file when the demo ends early."""
    stop = threading.Event()

    def work() -> None:
        try:
            write()
        except OSError as error:
            board.trouble(f"the synthetic imager cannot write: {error.strerror or error}")

    def write() -> None:
        for named in slides:
            for _, files in itertools.groupby(files_of(named, args.layout), key=lambda file: file.group):
                together = [(file.relative, file.content) for file in files]
                duration_s = sum(len(content) for _, content in together) / BYTES_PER_S / args.rate
                if not write_growing(folder, together, duration_s, wait=stop.wait):
                    return

    thread = threading.Thread(target=work, name="imager")
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def _wait_until_ready(board: Board, agent: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not board.online:
        if agent.poll() is not None:
            raise AgentError(f"the agent ended with code {agent.returncode}: {last_line(log)}")
        if time.monotonic() > deadline:
            raise AgentError(f"the agent was not ready within {START_LIMIT_S:.0f} s; see {log}")
        board.changed.wait(0.1)


def _show(
    board: Board, agent: subprocess.Popen[bytes], imager: threading.Thread, console: Console, *, headless: bool
) -> None:
    """Until every slide and patient has its final."""
    live = (
        contextlib.nullcontext()
        if headless
        else Live(console=console, refresh_per_second=8, get_renderable=board.render)
    )
    with live:
        while not board.finished:
            board.changed.wait(0.25)
            board.changed.clear()
            for line in board.new_lines():
                if headless:
                    console.print(line, soft_wrap=True)
            if board.failure:
                raise AgentError(board.failure)
            if agent.poll() is not None:
                raise AgentError(f"the agent ended with code {agent.returncode} before the last slide")
            if not imager.is_alive() and board.silent_s(time.monotonic()) > SILENCE_LIMIT_S:
                raise AgentError(f"no final for {board.missing()} within {SILENCE_LIMIT_S:.0f} s")


def _verdict(board: Board, console: Console) -> None:
    for line in board.verdict():
        console.print(line)
