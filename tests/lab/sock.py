"""Sockets for the tests: an echo server, clients that check what comes back, and packets with a false source.

serve tcp|udp ADDRESS PORT      prints "ready"; answers with the address it saw, then with what it got
tcp|udp ADDRESS PORT BYTES      sends BYTES random bytes, expects them back, prints "peer=ADDRESS"
say tcp|udp ADDRESS PORT TEXT   sends TEXT, expects it back
forge SOURCE TARGET PORT TEXT [DEVICE]   one UDP datagram with a source address that is not ours
hold PREFIX COUNT ADDRESS PORT  eight silent connections from each of PREFIX1 to PREFIXn (hexadecimal), begun anew for ever
probe ADDRESS COUNT MS          echo requests so many milliseconds apart; prints how many were answered within two seconds
talk ADDRESS PORT               a datagram every 50 ms over one socket; prints a line for each answer
advertise DEVICE PREFIX         one router advertisement: a default route, and a route to PREFIX, through this machine
claim DEVICE ADDRESS            for a second, in ARP or neighbour discovery, that the address is at this end of the link
solicit DEVICE ADDRESS COUNT    asks who has the address, from so many link-local addresses of nobody's
wait ADDRESS PORT SECONDS       prints the datagrams that arrive within that time, one a line
"""
import os
import select
import socket
import struct
import sys
import threading
import time


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def plain(address):
    return address.removeprefix("::ffff:").split("%")[0]


def read_all(sock):
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def answer_tcp(conn, peer):
    with conn:
        conn.settimeout(20)
        # Half of the first read at a time would deadlock on large echoes: read all, then write all.
        data = read_all(conn)
        conn.sendall(plain(peer[0]).encode() + b"\n" + data)


def serve(proto, address, port):
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    sock = socket.socket(family(address), kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family(address) == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind((address, port))
    if proto == "tcp":
        sock.listen(64)
    print("ready", flush=True)
    while True:
        if proto == "tcp":
            threading.Thread(target=answer_tcp, args=sock.accept(), daemon=True).start()
        else:
            data, peer = sock.recvfrom(1 << 16)
            if data[:3] == b"who":
                sock.sendto(plain(peer[0]).encode(), peer)
            else:
                sock.sendto(data, peer)


def tcp(address, port, size):
    data = os.urandom(size)
    with socket.create_connection((address, port), timeout=5) as sock:
        sock.settimeout(20)
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        peer, _, back = read_all(sock).partition(b"\n")
    if back != data:
        sys.exit(f"sent {len(data)} bytes, got {len(back)} back, or others")
    print(f"peer={peer.decode()}")


def udp(address, port, size):
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        # Linux: IP_MTU_DISCOVER 10 and IPV6_MTU_DISCOVER 23, value 2: set "do not fragment", never cut it here.
        if family(address) == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, 10, 2)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, 23, 2)
        # By the resolver, which knows the link behind a "%".
        sock.connect(socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0][4])
        sock.send(b"who")
        peer = sock.recv(1 << 16)
        data = b"." + os.urandom(size - 1)
        sock.send(data)
        if sock.recv(1 << 16) != data:
            sys.exit("another datagram came back")
    print(f"peer={peer.decode()}")


def say(proto, address, port, text):
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family(address), kind) as sock:
        sock.settimeout(5)
        sock.connect((address, port))
        sock.send(text.encode())
        if proto == "tcp":
            sock.shutdown(socket.SHUT_WR)
        back = read_all(sock) if proto == "tcp" else sock.recv(1 << 16)
    if not back.endswith(text.encode()):
        sys.exit("other bytes came back")


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def forge(source, target, port, text, device=None):
    af, body = family(target), text.encode()
    src, dst = socket.inet_pton(af, source), socket.inet_pton(af, target)
    length = 8 + len(body)
    head = struct.pack("!HHH", 4444, port, length)
    if af == socket.AF_INET:
        pseudo = src + dst + struct.pack("!BBH", 0, 17, length)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 1, 0, 64, 17, 0) + src + dst
    else:
        pseudo = src + dst + struct.pack("!IHBB", length, 0, 0, 17)
        ip = struct.pack("!IHBB", 6 << 28, length, 17, 64) + src + dst
    packet = ip + head + struct.pack("!H", checksum(pseudo + head + b"\0\0" + body)) + body
    with socket.socket(af, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        if af == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.sendto(packet, (target, 0))


def wait(address, port, seconds):
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        print("ready", flush=True)
        sock.settimeout(seconds)
        try:
            while True:
                data, peer = sock.recvfrom(1 << 16)
                print(plain(peer[0]), data.decode(errors="replace"), flush=True)
                if data == b"end":
                    return
        except TimeoutError:
            return


def probe(address, count, apart):
    # Not ping: once something was answered, that waits for the last ones no longer than two round trips.
    v6 = family(address) == socket.AF_INET6
    kind, proto = (128, socket.IPPROTO_ICMPV6) if v6 else (8, socket.IPPROTO_ICMP)
    ident, answered, sent, last = os.getpid() & 0xFFFF, set(), 0, None
    with socket.socket(family(address), socket.SOCK_RAW, proto) as sock:
        sock.connect((address, 0))
        start = time.monotonic()
        while len(answered) < count:
            now = time.monotonic()
            if sent < count and now >= start + sent * apart:
                bare = struct.pack("!BBHHH", kind, 0, 0, ident, sent) + bytes(48)
                # The kernel writes that of IPv6.
                total = 0 if v6 else checksum(bare)
                sent += 1
                last = now
                try:
                    sock.send(bare[:2] + struct.pack("!H", total) + bare[4:])
                except OSError:
                    pass  # an error that came back meanwhile, or no route: not answered
            due = start + sent * apart if sent < count else last + 2
            if sent == count and now >= due:
                break
            if select.select([sock], [], [], max(0, due - now))[0]:
                try:
                    data = sock.recv(1 << 16)
                except OSError:
                    continue
                data = data if v6 else data[(data[0] & 15) * 4 :]
                reply, _, _, whose, number = struct.unpack("!BBHHH", data[:8])
                if reply == (129 if v6 else 0) and whose == ident:
                    answered.add(number)
    print(f"answered={len(answered)}", flush=True)


def talk(address, port):
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.05)
        sock.connect((address, port))
        while True:
            try:
                sock.send(b"talk")
                sock.recv(1 << 16)
                print("answered", flush=True)
            except OSError:
                pass
            time.sleep(0.05)


def advertise(device, prefix):
    address, length = prefix.split("/")
    # RFC 4861 4.2: hop limit, flags, lifetime of the default route; RFC 4191 2.3: a more specific route, preference high.
    head = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0x08, 600, 0, 0)
    route = struct.pack("!BBBBI", 24, 3, int(length), 0x08, 600) + socket.inet_pton(socket.AF_INET6, address)
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        # The kernel writes the checksum, and takes the link-local address.
        sock.sendto(head + route, ("ff02::1", 0, 0, socket.if_nametoindex(device)))


def claim(device, address):
    with open(f"/sys/class/net/{device}/address") as file:
        mac = bytes.fromhex(file.read().strip().replace(":", ""))
    own = socket.inet_pton(family(address), address)
    if family(address) == socket.AF_INET:
        # RFC 826, as RFC 5227 announces: an answer that nobody asked for, to everybody on the link.
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac + own + b"\xff" * 6 + own
        frame = b"\xff" * 6 + mac + b"\x08\x06" + arp
    else:
        # RFC 4861 4.4: solicited no, override yes; the option names the hardware address (4.6.1).
        all_nodes = socket.inet_pton(socket.AF_INET6, "ff02::1")
        body = struct.pack("!I", 0x20000000) + own + b"\x02\x01" + mac
        pseudo = own + all_nodes + struct.pack("!IHBB", 4 + len(body), 0, 0, 58)
        icmp = struct.pack("!BBH", 136, 0, checksum(pseudo + b"\x88\0\0\0" + body)) + body
        ip = struct.pack("!IHBB", 6 << 28, len(icmp), 58, 255) + own + all_nodes
        frame = b"\x33\x33\0\0\0\x01" + mac + b"\x86\xdd" + ip + icmp
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        for _ in range(20):
            sock.send(frame)
            time.sleep(0.05)


def solicit(device, address, count):
    with open(f"/sys/class/net/{device}/address") as file:
        mac = bytes.fromhex(file.read().strip().replace(":", ""))
    wanted = socket.inet_pton(socket.AF_INET6, address)
    # RFC 4861 4.3, to the solicited-node multicast address (RFC 4291 2.7.1).
    group = socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + wanted[13:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        for n in range(count):
            own = socket.inet_pton(socket.AF_INET6, f"fe80::bad:{n:x}")
            body = b"\0\0\0\0" + wanted + b"\x01\x01" + mac
            pseudo = own + group + struct.pack("!IHBB", 4 + len(body), 0, 0, 58)
            icmp = struct.pack("!BBH", 135, 0, checksum(pseudo + b"\x87\0\0\0" + body)) + body
            ip = struct.pack("!IHBB", 6 << 28, len(icmp), 58, 255) + own + group
            sock.send(b"\x33\x33" + group[12:] + mac + b"\x86\xdd" + ip + icmp)


def hold_one(source, address, port):
    while True:
        try:
            with socket.socket(family(address), socket.SOCK_STREAM) as sock:
                sock.settimeout(6)
                sock.bind((source, 0))
                sock.connect((address, port))
                while sock.recv(4096):
                    pass
        except OSError:
            pass
        time.sleep(0.02)


def hold(prefix, count, address, port):
    for n in range(1, count + 1):
        for _ in range(8):
            threading.Thread(target=hold_one, args=(f"{prefix}{n:x}", address, port), daemon=True).start()
    threading.Event().wait()


def main(argv):
    verb = argv[0]
    if verb == "serve":
        serve(argv[1], argv[2], int(argv[3]))
    elif verb in ("tcp", "udp"):
        {"tcp": tcp, "udp": udp}[verb](argv[1], int(argv[2]), int(argv[3]))
    elif verb == "say":
        say(argv[1], argv[2], int(argv[3]), argv[4])
    elif verb == "forge":
        forge(argv[1], argv[2], int(argv[3]), *argv[4:])
    elif verb == "hold":
        hold(argv[1], int(argv[2]), argv[3], int(argv[4]))
    elif verb == "probe":
        probe(argv[1], int(argv[2]), int(argv[3]) / 1000)
    elif verb == "talk":
        talk(argv[1], int(argv[2]))
    elif verb == "advertise":
        advertise(argv[1], argv[2])
    elif verb == "solicit":
        solicit(argv[1], argv[2], int(argv[3]))
    elif verb == "claim":
        claim(argv[1], argv[2])
    elif verb == "wait":
        wait(argv[1], int(argv[2]), float(argv[3]))
    else:
        sys.exit(__doc__)


main(sys.argv[1:])
