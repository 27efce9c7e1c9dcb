"""Stands for a virtual machine: opens a TAP of the host and one in another namespace, and carries frames between them.

guest.py TAP NAMESPACE MAC   run in the host's namespace. The guest's interface is eth0.
guest.py stream SOCKET NAMESPACE MAC
                             the same with the TAP as a stream of frames, for which it asks again each time that it ends.
guest.py solicit             run in the guest's: asks for an address of DHCPv6 at once, and prints it.
"""

import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


def tap(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return fd


def guest(namespace, mac):
    space = os.open("/run/netns/" + namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(space, 0) != 0:
        sys.exit("setns: %s" % os.strerror(ctypes.get_errno()))
    inner = tap("eth0")
    for words in (["address", mac], ["up"]):
        subprocess.run(["ip", "link", "set", "eth0"] + words, check=True)
    return inner


def carry(outer_name, namespace, mac):
    outer = tap(outer_name)
    inner = guest(namespace, mac)
    print("ready", flush=True)
    other = {outer: inner, inner: outer}
    while True:
        for fd in select.select(list(other), [], [])[0]:
            frame = os.read(fd, 65536)
            try:
                os.write(other[fd], frame)
            except OSError:
                pass


def connected(path):
    while True:
        stream = socket.socket(socket.AF_UNIX)
        try:
            stream.connect(path)
            return stream
        except OSError:
            stream.close()
            time.sleep(0.2)


def streamed(path, namespace, mac):
    stream = connected(path)
    inner = guest(namespace, mac)
    print("ready", flush=True)
    rest = b""
    while True:
        try:
            ready = select.select([inner, stream], [], [])[0]
            if inner in ready:
                frame = os.read(inner, 65536)
                stream.sendall(struct.pack("!I", len(frame)) + frame)
            if stream not in ready:
                continue
            got = stream.recv(65536)
        except OSError:
            got = b""
        if not got:
            stream.close()
            stream, rest = connected(path), b""
            continue
        rest += got
        while len(rest) >= 4 and len(rest) >= 4 + struct.unpack("!I", rest[:4])[0]:
            length = struct.unpack("!I", rest[:4])[0]
            frame, rest = rest[4 : 4 + length], rest[4 + length :]
            os.write(inner, frame)


def option(number, value):
    return struct.pack("!HH", number, len(value)) + value


def options(rest):
    found = {}
    while len(rest) >= 4:
        number, length = struct.unpack("!HH", rest[:4])
        found[number] = rest[4 : 4 + length]
        rest = rest[4 + length :]
    return found


def solicit():
    index = socket.if_nametoindex("eth0")
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", 546))
    sock.settimeout(1)
    message = b"\x01abc" + option(1, b"\0\3\0\1guest!") + option(14, b"") + option(3, b"\0\0\0\1" + bytes(8))
    for _ in range(10):
        sock.sendto(message, ("ff02::1:2", 547, 0, index))
        try:
            reply = sock.recv(2048)
        except TimeoutError:
            continue
        assert reply[:4] == b"\x07abc", reply
        given = options(options(reply[4:])[3][12:])[5]
        print(socket.inet_ntop(socket.AF_INET6, given[:16]))
        print(socket.inet_ntop(socket.AF_INET6, options(reply[4:])[23][:16]))
        return
    sys.exit("no answer")


if sys.argv[1] == "solicit":
    solicit()
elif sys.argv[1] == "stream":
    streamed(*sys.argv[2:])
else:
    carry(*sys.argv[1:])
