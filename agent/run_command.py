"""`python -m agent run`: the daemon, from a settings file to an exit code."""

from __future__ import annotations

import argparse
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent import discretion, host
from agent.engine.service import open_engine
from agent.exposure import refuse_exposed
from agent.handover import CancelToken
from agent.reload import LiveSettings
from agent.settings import load_settings

HELP = """Watches the imager's folder and publishes posteriors over MQTT until SIGTERM.

Under systemd it reports READY when the engine is warm, and feeds the watchdog. A broker that is away is waited for;
nothing is lost meanwhile. configs/agent.yaml explains every setting. SIGHUP (systemctl reload) reads the file again:
times and levels are taken over at once; what needs a restart is said in the log, with the reason.

example:
  python -m agent doctor --config /etc/spinextract-agent/agent.yaml
  python -m agent run --config /etc/spinextract-agent/agent.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `agent run`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = HELP
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="settings (YAML)")


@discretion.discreet()
def main(args: argparse.Namespace) -> int:
    """Run the daemon; returns the exit code. Raises AgentError when it cannot start."""
    settings = load_settings(args.config)
    host.configure_logging(settings.log.level, settings.log.format)
    refuse_exposed(settings, args.config)

    token = CancelToken()
    live = LiveSettings(settings, lambda: load_settings(args.config))

    def stop() -> None:
        """Ask for a clean end; a second signal ends at once."""
        if token.stopping.is_set():
            token.cancel()
        token.stop()

    with host.on_signals({signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: live.hangup.set}):
        with ThreadPoolExecutor(1, thread_name_prefix="engine-start") as ahead:
            # The engine is read, hashed and compiled while the rest is imported.
            opened = ahead.submit(open_engine, settings.profile, settings.engine)
            from agent.pipeline import Pipeline
        return Pipeline(live, token, *opened.result()).run()
