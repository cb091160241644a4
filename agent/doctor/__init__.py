"""`python -m agent doctor`: checks this machine and says what is wrong, why it matters, and what mends it."""

from agent.doctor.command import add_arguments, examine, main
from agent.doctor.finding import Finding

__all__ = ["Finding", "add_arguments", "examine", "main"]
