"""A proxy that looks inside TLS: it answers CONNECT, shows a certificate of its own, and encrypts again on the other side.

inspector.py ADDRESS PORT CERTIFICATE KEY LOG TO-ADDRESS TO-PORT - every CONNECT leads to TO; the first line that is read inside
TLS is appended to LOG.
"""
import socket
import ssl
import sys
import threading

address, port, certificate, key, log, to, to_port = sys.argv[1:]
server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_side.load_cert_chain(certificate, key)
server_side.maximum_version = ssl.TLSVersion.TLSv1_2
client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client_side.check_hostname = False
client_side.verify_mode = ssl.CERT_NONE


def copy(source, sink, tell=None):
    """Passes bytes on until one side ends; `tell` is called with the first ones."""
    try:
        while data := source.recv(65536):
            if tell:
                tell(data)
                tell = None
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def note(data):
    """Writes down what is spoken inside."""
    with open(log, "ab") as file:
        file.write(data.split(b"\r\n")[0] + b"\n")


def serve(client):
    """One client, to its end."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return
        head += byte
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    try:
        inside = server_side.wrap_socket(client, server_side=True)
    except OSError:
        # What is not TLS is let go: that is what such a proxy is for.
        return
    beyond = client_side.wrap_socket(socket.create_connection((to, int(to_port))))
    threading.Thread(target=copy, args=(beyond, inside), daemon=True).start()
    copy(inside, beyond, note)


listener = socket.create_server((address, int(port)))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
