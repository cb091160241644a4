"""Pure code that decides the answer given pixels; shared by the agent and by training."""
