"""A function in a fork of its own. Each case runs in a fresh interpreter, since a test runner may have threads."""

from __future__ import annotations

import subprocess
import sys
import textwrap

from weavenet import program


def answer(body: str) -> str:
    code = "import os, threading, time\nfrom weavenet.runtime.fork import Fork, ForkFailed\n" + textwrap.dedent(body)
    source = f"import sys; sys.path.insert(0, {program.source!r})\n" + code
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout.strip()


def test_what_it_returns_comes_back_however_long_it_is() -> None:
    assert (
        answer("""
        fork = Fork(lambda: b"x" * 1_000_000 + str(os.getppid()).encode())
        said = fork.collect(30.0)
        print(len(said) > 1_000_000, said.endswith(str(os.getpid()).encode()))
    """)
        == "True True"
    )


def test_what_it_raises_comes_back_in_words() -> None:
    assert (
        answer("""
        def work():
            raise ValueError("expected 32 bytes")
        try:
            Fork(work).collect(30.0)
        except ForkFailed as error:
            print(error)
    """)
        == "expected 32 bytes"
    )


def test_an_end_without_a_word_is_a_failure() -> None:
    assert (
        answer("""
        try:
            Fork(lambda: os.kill(os.getpid(), 9)).collect(30.0)
        except ForkFailed as error:
            print(error)
    """)
        == "the process ended without a word"
    )


def test_one_that_hangs_is_ended() -> None:
    assert (
        answer("""
        fork = Fork(lambda: time.sleep(1000) or b"")
        try:
            fork.collect(0.1)
        except TimeoutError as error:
            print(error)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("gone")
    """)
        == "nothing within 0 s\ngone"
    )


def test_it_holds_no_file_of_its_parent_open() -> None:
    assert (
        answer("""
        reader, writer = os.pipe()
        fork = Fork(lambda: time.sleep(1000) or b"")
        os.close(writer)
        print(os.read(reader, 1))  # the end of file: nobody else has the other end
        try:
            fork.collect(0.0)
        except TimeoutError:
            pass
    """)
        == "b''"
    )


def test_a_process_with_threads_is_not_forked() -> None:
    assert (
        answer("""
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        try:
            Fork(lambda: b"")
        except RuntimeError as error:
            print(error)
        stop.set()
    """)
        == "a process with several threads is not forked"
    )
