"""Runs byway's `run` at a terminal of its own, as a person does, and looks at what comes of each key.

terminal.py BYWAY
"""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

BYWAY = sys.argv[1]


class Terminal:
    """A terminal, and the program that has it."""

    def __init__(self, *words):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(PS1="outer> ", TERM="dumb")
            os.execvp(words[0], words)
        self.heard = ""

    def type(self, text):
        os.write(self.fd, text.encode())

    def hear(self, wanted):
        """Waits for a line or a part of one, and forgets what came before its end."""
        until = time.monotonic() + 10
        while not (found := re.search(wanted, self.heard)):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.fd], [], [], left)[0]:
                sys.exit("waits for %r, heard %r" % (wanted, self.heard))
            try:
                self.heard += os.read(self.fd, 4096).decode(errors="replace")
            except OSError:
                sys.exit("ended before %r, heard %r" % (wanted, self.heard))
        self.heard = self.heard[found.end() :]
        return found

    def size(self, rows, columns):
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def code(self):
        """How the program ended. What it still says is of no interest, and would keep it from ending."""
        while True:
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def interactive():
    """A shell as the program: it has the terminal, jobs and the size of the window."""
    shell = Terminal(BYWAY, "run", "--name", "shell", "bash", "--norc", "-i")
    shell.hear("outer> ")
    shell.type("tty; ip -o addr show byway0 | wc -l\n")
    shell.hear("/dev/pts/")
    shell.type("sleep 60\n")
    wait_for("sleep 60", True)
    shell.type("\x03")
    shell.hear("outer> ")
    shell.type("echo interrupted=$?\n")
    shell.hear("interrupted=130")
    shell.type("sleep 61\n")
    wait_for("sleep 61", True)
    shell.type("\x1a")
    shell.hear("Stopped")
    shell.type("jobs; bg; kill %1; wait; echo done=jobs\n")
    shell.hear("Stopped.*sleep 61")
    shell.hear("\ndone=jobs")
    shell.type("trap 'echo window=$(stty size)' WINCH; echo se''t\n")
    shell.hear("\nset")
    shell.size(41, 97)
    shell.type("\n")
    shell.hear("window=41 97")
    shell.type("exit 5\n")
    assert shell.code() == 5


def from_a_shell():
    """A program that a shell runs by `byway run`: stopped, continued and interrupted as any other job of it."""
    shell = Terminal("bash", "--norc", "-i")
    shell.hear("outer> ")
    shell.type("%s run --name job sleep 62\n" % BYWAY)
    wait_for("sleep 62", True)
    shell.type("\x1a")
    shell.hear("Stopped")
    shell.hear("outer> ")
    shell.type("fg\n")
    shell.hear("sleep 62")
    wait_for("sleep 62", True, but="T")
    shell.type("\x03")
    shell.hear("outer> ")
    shell.type("echo ended=$?\n")
    shell.hear("ended=130")
    wait_for("sleep 62", False)
    # The terminal is the outer shell's again, as it was.
    shell.type("stty -a | grep -c ' echo '; exit 3\n")
    shell.hear("1")
    assert shell.code() == 3


def wait_for(line, there, but=""):
    """Waits until a process with that command line is there, or gone; one in the state `but` does not count. The `run`
    before it has more words. A shell gives its job the terminal before that has its command line, so keys reach it then."""
    wanted = line.replace(" ", "\0") + "\0"
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found = False
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/cmdline" % pid) as file:
                    is_it = file.read() == wanted
                with open("/proc/%s/stat" % pid) as file:
                    found |= is_it and file.read().rsplit(")")[-1].split()[0] != but
            except OSError:
                pass
        if found == there:
            return
        time.sleep(0.05)
    sys.exit("%s: there is %s" % (line, not there))


interactive()
from_a_shell()
print("a shell's jobs, keys and window are as at any terminal")
