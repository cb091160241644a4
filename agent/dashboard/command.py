"""`python -m agent dashboard`: the screen in theatre, from a settings file to an exit code."""

from __future__ import annotations

import argparse
import importlib
import threading
import webbrowser
from pathlib import Path

from agent import discretion, host
from agent.errors import AgentError
from agent.settings import load_settings

HELP = """Serves one web page that shows what the agent says: the current patient's result, large, and the heat map as
it fills. Research use only.

It is an ordinary MQTT subscriber: it reads site, instrument and the mqtt section of the agent's settings, and the
dashboard section for where to listen. It never touches slides, the ledger or the model, and needs no connection
beyond the broker. It listens on this machine only, unless told otherwise: whoever reaches the page sees the results.

examples:
  python -m agent dashboard --config /etc/spinextract-agent/agent.yaml
  python -m agent dashboard --config agent.yaml --open          and open it in this machine's browser
  python -m agent dashboard --config agent.yaml --port 0        take any free port, and print it

SIGTERM or Ctrl-C ends it. http://127.0.0.1:8080/healthz says whether it hears the broker and the agent.
"""
LIBRARIES = ("starlette", "uvicorn", "h11")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent dashboard`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (YAML) of the agent")
    parser.add_argument("--host", metavar="ADDRESS", help="listen there instead of at dashboard.host")
    parser.add_argument("--port", type=_port, metavar="N", help="listen there instead of at dashboard.port; 0: any")
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")


@discretion.discreet()
def main(args: argparse.Namespace) -> int:
    """Serve until a signal; returns the exit code. Raises AgentError when it cannot start."""
    settings = load_settings(args.config)
    host.configure_logging(settings.log.level, settings.log.format)
    for library in LIBRARIES:
        try:
            importlib.import_module(library)
        except ImportError as error:
            raise AgentError(
                f"the dashboard needs {library}: pip install 'spinextract-agent[dashboard]' ({error})"
            ) from error
    from agent.dashboard.server import serve

    def ready(url: str) -> None:
        print(f"dashboard at {url} (Ctrl-C ends it)", flush=True)
        if args.open:
            # A browser may take its time, or stay in the foreground.
            threading.Thread(target=webbrowser.open, args=(url,), name="browser", daemon=True).start()

    serve(settings, args.host or settings.dashboard.host, _chosen(args.port, settings.dashboard.port), ready)
    return 0


def _chosen(asked: int | None, configured: int) -> int:
    return configured if asked is None else asked


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no TCP port (0 to 65535)")
    return int(text)
