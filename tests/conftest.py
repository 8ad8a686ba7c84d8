"""What holds for every test."""

import signal

# Started in the background of a shell, pytest ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
