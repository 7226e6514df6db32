"""The training loop: schedule, buffer, step and ledger."""
