"""Exceptions that arrive anywhere: Ctrl-C, signal handlers that raise, asynchronous exceptions.

`points` delivers one at a chosen place, `timers` at a random instant, `threads` to another thread
than the main one. `scenarios` and `collection` say what is interrupted, `aftermath` what must be
true afterwards, `trial` does it once, and `campaign` does it in child processes.
"""
